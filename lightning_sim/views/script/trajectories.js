// The head of the page, and every number over the course of training.

const ofLayers = data.names.filter((name) => name.layer !== null);
const kinds = [...new Set(ofLayers.map((name) => name.title))].map((title) => ofLayers.filter((name) => name.title === title));
const kindTitles = kinds.map((names) => names[0].title);
const outputs = data.names.filter((name) => name.layer === null);
const runLines = (name) => shownWith(name).map((run) => ({ run, name: name.name, label: run.name, color: run.color }));

const bandText = data.runs.some((run) => Object.keys(run.errors).length)
  ? " Bands: 1.96 standard errors of other samples of the same kind, not of other trainings." : "";
const ringText = data.runs.some((run) => Object.keys(run.notes).length) ? " Rings: values that few samples carry; point at one." : "";

function header() {
  add(page, element("h1", {}, "Similarity report"));
  const node = add(page, element("header"));
  const bar = add(node, element("div", { class: "bar" }));
  data.runs.forEach((run) => {
    const button = element("button", { class: "run", type: "button", "aria-pressed": "true", title: "show or hide this run" },
      dot(run.color), run.name);
    button.addEventListener("click", () => {
      run.shown = !run.shown || shownRuns().length === 1;
      button.setAttribute("aria-pressed", String(run.shown));
      redraws.forEach((redraw) => redraw());
    });
    add(bar, button);
  });
  const thinned = data.runs.filter((run) => run.measurements > run.epochs.length).map((run) => run.name);
  if (thinned.length) {
    add(node, element("p", {}, `Of ${thinned.join(", ")} evenly spaced measurements are drawn; the table counts all.`));
  }
}

function trajectories() {
  if (!kinds.length) return;
  const alone = ofLayers.filter((name) => !known(name.scale.same)).map((name) => name.measure);
  const only = alone.length ? ` Without a value that means "the same": ${[...new Set(alone)].join(", ")}.` : "";
  const node = section("Layers over training", `How similar every layer is to its counterpart in the reference.${bandText}${ringText}${only}`);
  const bar = add(node, element("div", { class: "bar" }));
  const body = add(node, element("div"));
  let kind = 0, byRun = kinds[0].length > 24 ? 1 : 0;
  const draw = () => {
    body.replaceChildren();
    const names = kinds[kind];
    const panels = byRun
      ? shownRuns().map((run) => {
          const held = names.filter((name) => run.values[name.name] !== undefined);
          return {
            title: run.name,
            yTitle: names[0].title,
            lines: held.map((name, index) => ({
              run, name: name.name, label: name.label, color: viridis(index / Math.max(held.length - 1, 1)),
            })),
          };
        })
      : names.map((name) => ({ title: name.label, tip: name.layer, yTitle: name.title, lines: runLines(name) }));
    linePanels(body, panels.filter((panel) => panel.lines.length), Boolean(byRun));
  };
  choice(bar, kindTitles, 0, (index) => ((kind = index), draw()));
  choice(bar, ["a panel per layer", "a panel per run"], byRun, (index) => ((byRun = index), draw()));
  redraws.push(draw);
}

function outputTrajectories() {
  if (!outputs.length) return;
  const groups = [...new Set(outputs.map((name) => name.scale.group))].join(" and ");
  const same = outputs.filter((name) => known(name.scale.same)).map((name) => `${name.measure} ${name.scale.same}${name.scale.unit && ` ${name.scale.unit}`}`);
  const node = section(`${groups[0].toUpperCase()}${groups.slice(1)} over training`, same.length ? `The reference itself reads ${[...new Set(same)].join(", ")}.` : "");
  const conditions = [...new Set(outputs.map((name) => name.condition))];
  const bar = conditions.some(Boolean) && add(node, element("div", { class: "bar" }));
  const body = add(node, element("div"));
  let condition = conditions[0];
  const draw = () => {
    body.replaceChildren();
    const grid = add(body, element("div", { class: "panels" }));
    for (const name of outputs.filter((one) => one.condition === condition)) { // each on its own scale
      const lines = runLines(name);
      if (!lines.length) continue;
      const box = element("div");
      linePanels(box, [{ title: name.measure, yTitle: [name.measure, name.scale.unit].filter(Boolean).join(", "), lines }], false);
      add(grid, box.firstChild.firstChild);
    }
  };
  if (bar) choice(bar, conditions.map((one) => one || "clean"), 0, (index) => ((condition = conditions[index]), draw()));
  else draw();
  redraws.push(draw);
}

header();
trajectories();
outputTrajectories();
