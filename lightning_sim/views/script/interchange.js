// Similarity against stitching: like, and yet not interchangeable?

function interchange() {
  const held = new Set(data.names.map((name) => name.name));
  const layers = data.names.filter((name) => name.measure === "stitching" && name.layer !== null && held.has(`cka/${name.representation}/${name.layer}`));
  if (!layers.length) return;
  const node = section("Similar, and interchangeable?", `Every layer at the last measurement: CKA with its counterpart, and how well it takes the other's place after a linear map (1: as well as the layer that was there). On marked ground lie layers that are similar (CKA of at least ${data.similar}) and cannot be exchanged all the same. Where an untrained front, a dash, reads as high, a high value is no news.`);
  const row = add(node, element("div", { class: "row" }));
  const left = add(row, element("div")), right = add(row, element("div", { class: "scroll" }));
  const draw = () => {
    const points = layers.flatMap((name) => shownWith(name).map((run) => {
      const of = (measure) => run.values[`${measure}/${name.representation}/${name.layer}`] ?? [];
      const i = run.values[name.name].findLastIndex((value, index) => known(value) && known(of("cka")[index]));
      const ckaName = `cka/${name.representation}/${name.layer}`, errors = errorsOf(run, ckaName);
      return i < 0 ? null : { name, run, cka: of("cka")[i], ckaText: withError(of("cka")[i], errors[i], ckaName), stitching: run.values[name.name][i], untrained: of("stitching_untrained")[i], at: moments(run)[i] };
    })).filter(Boolean);
    const both = points.flatMap((point) => [point.stitching, point.untrained]).filter(known);
    const x = [Math.min(0, ...points.map((point) => point.cka)), 1.03], y = [Math.min(0, ...both), Math.max(1.03, ...both)];
    const exchanged = ({ cka, stitching }) => cka < data.similar || stitching >= data.similar;
    left.replaceChildren();
    const chart = frame(left, { width: fitting(left, 560), height: 340, x, y, label: "stitching against cka", xTitle: "cka", yTitle: "stitching" });
    const [edge, top] = [chart.toX(data.similar), chart.toY(data.similar)];
    shape(chart.svg, "rect", { class: "marked", x: edge, y: top, width: chart.right - edge, height: chart.floor - top });
    points.forEach((point) => {
      const { name, run, cka, stitching, untrained, at } = point, cx = chart.toX(cka), cy = chart.toY(stitching);
      if (known(untrained)) {
        shape(chart.svg, "line", { class: "cross", x1: cx, x2: cx, y1: cy, y2: chart.toY(untrained) });
        shape(chart.svg, "line", { stroke: run.color, "stroke-width": 2, x1: cx - 5, x2: cx + 5, y1: chart.toY(untrained), y2: chart.toY(untrained) });
      }
      const mark = shape(chart.svg, "circle", { cx, cy, r: 5, fill: run.color });
      mark.addEventListener("pointermove", (event) => showTip(event, `${run.name}, ${name.layer}, ${momentText(run.axis, at)}\ncka ${format(cka)}, stitching ${format(stitching)}, untrained ${format(untrained)}`));
      mark.addEventListener("pointerleave", hideTip);
      if (!exchanged(point)) shape(chart.svg, "text", { class: "name", x: cx - 8, y: cy + 4, "text-anchor": "end" }, name.label);
    });
    right.replaceChildren();
    const cell = (text) => element("td", { class: "number" }, text);
    table(right, [["layer"], [""], ["cka", "number"], ["stitching", "number"], ["untrained", "number"]], element("tbody", {}, ...points.map((point) =>
      element("tr", { class: exchanged(point) ? "" : "differs" }, element("td", { title: point.name.layer }, point.name.label),
        element("td", {}, dot(point.run.color)), cell(point.ckaText), cell(format(point.stitching)), cell(format(point.untrained))))));
  };
  draw();
  redraws.push(draw);
}

interchange();
