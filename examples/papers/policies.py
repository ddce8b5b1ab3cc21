"""Do policies of similar features act alike? Section 3.5 of a study of feature against output similarity.

The protocol, fixed before the first run; the value depends on the pool of agents, so that only its sign is claimed:

- a grid of 7 x 7 places, "open" or with a "wall" across the middle that has one gap; a goal is drawn at random, and
  another one when it is reached; the reward is by how much the (Manhattan) distance to the goal shrinks;
- a policy sees rows and columns of itself and of the goal, one-hot, through two hidden layers of 32, and learns by
  REINFORCE (Adam, rate 0.01, discount 0.9, returns normalised) from 64 grids of 16 steps at a time: 1, 12 or 60 times,
  so about 1k, 12k or 61k steps, four seeds each, in either grid: two pools of 12 agents;
- in either grid all agents of a pool roll out once, and 512 of the states they come to are drawn;
- on these, all pairs of the pool: unbiased CKA of the second hidden layer, Jensen-Shannon divergence of the actions;
- the claim holds if Spearman's correlation of the two is negative, its 95 % interval without 0, in at least 3 of the 4
  combinations of grids.

The interval is by the jackknife over agents, which pairs share. The first run had taken pairs for independent.

Run: python examples/papers/policies.py FOLDER
"""

import itertools
from collections.abc import Iterator

import torch
from lightning.fabric import seed_everything
from material import correlated, features, run, table
from torch import Tensor, nn

from lightning_sim.figures.scatter import Scatter, scatter_figure
from lightning_sim.functional import (
    centered_kernel_alignment,
    jensen_shannon_divergence,
    permutation_null,
    spearman_correlation,
)

SIZE, GRIDS, STEPS, DISCOUNT = 7, 64, 16, 0.9
MOVES = torch.tensor([[0, 1], [1, 0], [0, -1], [-1, 0]])


def layout(name: str) -> Tensor:
    """Where one can stand, (7, 7)."""
    free = torch.ones(SIZE, SIZE, dtype=torch.bool)
    if name == "wall":
        free[SIZE // 2, 1:] = False
    return free


def places(free: Tensor, count: int) -> Tensor:
    all_places = free.nonzero()
    return all_places[torch.randint(len(all_places), (count,))]


def roll_out(policy: nn.Module, free: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """States (64, 28), actions and rewards (64,) of every step."""
    own, goal = places(free, GRIDS), places(free, GRIDS)
    for _ in range(STEPS):
        state = nn.functional.one_hot(torch.cat([own, goal], 1), SIZE).flatten(1).float()
        with torch.no_grad():
            action = torch.distributions.Categorical(logits=policy(state)).sample()
        wanted = (own + MOVES[action]).clamp(0, SIZE - 1)
        after = torch.where(free[wanted[:, 0], wanted[:, 1]][:, None], wanted, own)
        yield state, action, ((own - goal).abs().sum(1) - (after - goal).abs().sum(1)).float()
        own = after
        goal = torch.where((own == goal).all(1, keepdim=True), places(free, GRIDS), goal)


def agent(free: Tensor, updates: int, seed: int) -> nn.Module:
    seed_everything(seed, verbose=False)
    hidden = (nn.Linear(4 * SIZE, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
    policy = nn.Sequential(*hidden, nn.Linear(32, len(MOVES)))
    optimizer = torch.optim.Adam(policy.parameters(), 0.01)
    for _ in range(updates):
        states, actions, rewards = (torch.stack(part) for part in zip(*roll_out(policy, free), strict=True))
        returns = [torch.zeros(GRIDS)]
        for reward in rewards.flip(0):
            returns.insert(0, reward + DISCOUNT * returns[0])
        weights = torch.stack(returns[:-1])
        weights = (weights - weights.mean()) / weights.std()
        chosen = policy(states).log_softmax(-1).gather(-1, actions[..., None])[..., 0]
        optimizer.zero_grad()
        (-(chosen * weights).mean()).backward()
        optimizer.step()
    return policy.eval()


def main() -> None:
    with run(__file__, __doc__) as given:
        budgets, seeds = ((1, 3, 6), 2) if given.quick else ((1, 12, 60), 4)
        pools = {
            name: [agent(layout(name), updates, seed) for seed, updates in enumerate(budgets * seeds)]
            for name in ("open", "wall")
        }
        rows, panels, negative = [], [], 0
        for (trained_in, pool), tested_in in itertools.product(pools.items(), ("open", "wall")):
            seed_everything(0, verbose=False)
            steps = [[(state, reward) for state, _, reward in roll_out(policy, layout(tested_in))] for policy in pool]
            seen = torch.cat([state for course in steps for state, _ in course])
            states = seen[torch.randperm(len(seen))[:512]]
            rewards = [float(torch.stack([reward for _, reward in course]).mean()) for course in steps]
            hidden, logits = zip(*(features(policy, states, ["3", "4"]) for policy in pool), strict=True)
            pairs = list(itertools.combinations(range(len(pool)), 2))
            cka = torch.stack([centered_kernel_alignment(hidden[a], hidden[b]) for a, b in pairs])
            jsd = torch.stack([jensen_shannon_divergence(logits[a], logits[b]) for a, b in pairs])
            chance = sum(permutation_null(logits[a], logits[b], measure="jsd").mean for a, b in pairs) / len(pairs)
            value, low, high = correlated(cka, jsd, pairs)
            negative += high < 0
            rows.append(
                [
                    trained_in,
                    tested_in,
                    len(pairs),
                    f"{value:.2f} [{low:.2f}, {high:.2f}]",
                    f"{min(rewards):.2f} to {max(rewards):.2f}",
                    f"{cka.min():.2f} to {cka.max():.2f}",
                    f"{jsd.min():.3f} to {jsd.max():.3f}",
                    chance,
                ]
            )
            title = f"{trained_in}, seen in {tested_in}"
            slope = spearman_correlation(cka, jsd).slope
            panels.append(Scatter(title, f"{value:.2f}", cka.double().numpy(), jsd.double().numpy(), slope))
        print(f"Spearman's correlation of CKA and JSD; paper: -.721; below 0 with its interval in {negative} of 4\n")
        header = ("trained in", "seen in", "pairs", "correlation", "reward a step", "CKA", "JSD", "mean JSD by chance")
        table(header, rows)
        # Pairs are coloured by the later of the two budgets.
        later = [budgets[max(a % len(budgets), b % len(budgets))] for a, b in pairs]
        scatter_figure("Policies", panels, later, ("CKA of features", "JSD of actions")).savefig(given.figure)


if __name__ == "__main__":
    main()
