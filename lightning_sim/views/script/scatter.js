// Similarity against outputs, with correlations.

function scatter() {
  if (!kinds.length || !outputs.length) return;
  const node = section("Similarity against outputs", "One point per measurement, dark is early and bright is late; the line is the least-squares fit. The values are taken as exact, and measurements of one run depend on each other: the 95% intervals are too narrow to say what another run would give.");
  const bar = add(node, element("div", { class: "bar" }));
  const row = add(node, element("div", { class: "row" }));
  const left = add(row, element("div")), right = add(row, element("div", { class: "scroll" }));
  let kind = 0, layer = 0, output = Math.max(outputs.findIndex((name) => known(name.scale.low) && name.scale.same === name.scale.low), 0);
  let layers = null;
  const of = (run, name) => data.correlations.find((c) =>
    c.run === run.name && c.name === name.name && c.output === outputs[output].name);
  const draw = () => {
    const name = kinds[kind][layer], target = outputs[output].name;
    layers.selectedIndex = layer;
    left.replaceChildren();
    const runs = shownWith(name).filter((run) => run.values[target]);
    const chart = frame(left, {
      width: fitting(left, 560), height: 340, left: 56,
      x: extent(runs.flatMap((run) => run.values[name.name])), y: extent(runs.flatMap((run) => run.values[target])),
      label: `${target} against ${name.name}`, xTitle: `${name.title}, ${name.label}`, yTitle: target,
    });
    const [low, high] = range(runs.flatMap(moments));
    runs.forEach((run) => {
      const xs = run.values[name.name], ys = run.values[target];
      const pairs = xs.map((x, i) => [x, ys[i], i]).filter(([x, y]) => known(x) && known(y));
      const found = of(run, name);
      if (found && known(found.slope) && pairs.length) {
        const mean = [0, 1].map((k) => pairs.reduce((sum, pair) => sum + pair[k], 0) / pairs.length);
        const ends = [Math.min(...pairs.map((p) => p[0])), Math.max(...pairs.map((p) => p[0]))];
        drawLine(chart, ends, ends.map((x) => mean[1] + found.slope * (x - mean[0])), { stroke: run.color, "stroke-width": 1.6, opacity: 0.8 });
      }
      pairs.forEach(([x, y, i]) => {
        const at = moments(run)[i];
        const mark = shape(chart.svg, "circle", {
          cx: chart.toX(x), cy: chart.toY(y), r: 5, "stroke-width": 2, stroke: run.color, fill: viridis((at - low) / (high - low || 1)),
        });
        mark.addEventListener("pointermove", (event) => showTip(event, `${run.name}, ${momentText(run.axis, at)}\n${name.measure} ${reading(x, name.name)}, ${target} ${reading(y, target)}`));
        mark.addEventListener("pointerleave", hideTip);
      });
    });
    right.replaceChildren();
    table(right, [["layer"], [""], ["Pearson", "number"], ["Spearman", "number"], ["slope", "number"]], correlations());
  };
  const correlations = () => {
    const body = element("tbody");
    kinds[kind].forEach((name, index) => {
      shownWith(name).forEach((run, position) => {
        const found = of(run, name);
        const interval = (value, low, high) => (found && known(value)
          ? [signed(value, 2), element("small", {}, `[${signed(low, 2)}, ${signed(high, 2)}]`)] : ["–"]);
        add(body, element("tr", { class: index === layer ? "choice chosen" : "choice", onclick: () => ((layer = index), draw()) },
          element("td", { title: name.layer }, position ? "" : name.label),
          element("td", {}, dot(run.color)),
          element("td", { class: "number" }, ...interval(found?.r, found?.rLow, found?.rHigh)),
          element("td", { class: "number" }, ...interval(found?.rho, found?.rhoLow, found?.rhoHigh)),
          element("td", { class: "number" }, found && known(found.slope) ? signed(found.slope, 2) : "–")));
      });
    });
    return body;
  };
  const pickKind = element("span"), pickOutput = element("span");
  bar.append(pickKind, "against", pickOutput);
  const fill = () => {
    if (layers) layers.parentElement.remove();
    layer = Math.min(layer, kinds[kind].length - 1);
    layers = menu(bar, "layer", kinds[kind].map((name) => name.label), layer, (index) => ((layer = index), draw()));
    draw();
  };
  layer = kinds[0].length - 1;
  choice(pickKind, kindTitles, 0, (index) => ((kind = index), fill()));
  choice(pickOutput, outputs.map((name) => name.name), output, (index) => ((output = index), draw()));
  redraws.push(draw);
}

scatter();
