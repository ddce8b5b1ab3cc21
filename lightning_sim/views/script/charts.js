// Charts: their frame, lines, and panels of lines with a cross hair.

/** As wide as its place, so that letters are not made smaller. */
const fitting = (place, most) => Math.min(Math.max(place.clientWidth || most, 300), most);
function frame(parent, { width, height, x, y, label, xTitle, yTitle, axis, left = 50, bottom = 36 }) {
  const svg = shape(parent, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const right = width - 6, top = 6, floor = height - bottom;
  const toX = (value) => left + ((value - x[0]) / (x[1] - x[0] || 1)) * (right - left);
  const toY = (value) => floor - ((value - y[0]) / (y[1] - y[0] || 1)) * (floor - top);
  for (const tick of ticks(...y, 4)) {
    shape(svg, "line", { class: "grid", x1: left, x2: right, y1: toY(tick), y2: toY(tick) });
    shape(svg, "text", { x: left - 6, y: toY(tick) + 4, "text-anchor": "end" }, tickText(tick));
  }
  shape(svg, "line", { class: "axis", x1: left, x2: right, y1: floor, y2: floor });
  const room = (right - left) / (axis ? 45 : 75);
  for (const tick of axis ? momentTicks(...x, room, axis) : ticks(...x, Math.max(3, Math.round(room)))) {
    const text = axis === "epoch" && tick === start ? "start" : tickText(tick);
    shape(svg, "text", { x: toX(tick), y: floor + 14, "text-anchor": "middle" }, text);
  }
  shape(svg, "text", { class: "title", x: (left + right) / 2, y: height - 4, "text-anchor": "middle" }, xTitle);
  const middle = `translate(10 ${(top + floor) / 2}) rotate(-90)`;
  shape(svg, "text", { class: "title", x: 0, y: 0, transform: middle, "text-anchor": "middle" }, yTitle);
  return { svg, toX, toY, left, right, top, floor };
}
function drawLine(chart, xs, ys, attributes) {
  let path = "", pen = "M";
  ys.forEach((value, index) => {
    if (!known(value)) return void (pen = "M");
    path += `${pen}${chart.toX(xs[index]).toFixed(1)} ${chart.toY(value).toFixed(1)}`;
    pen = "L";
  });
  const style = { fill: "none", "stroke-width": 1.8, "stroke-linejoin": "round", "stroke-linecap": "round" };
  shape(chart.svg, "path", { d: path || "M0 0", ...style, ...attributes });
  ys.forEach((value, index) => { // alone between missing ones, a point has no line
    if (known(value) && !known(ys[index - 1]) && !known(ys[index + 1])) {
      shape(chart.svg, "circle", { cx: chart.toX(xs[index]), cy: chart.toY(value), r: 2.2, fill: attributes.stroke });
    }
  });
}
function drawBand(chart, xs, band, color) {
  const at = (i, end) => `${chart.toX(xs[i]).toFixed(1)} ${chart.toY(band[i][end]).toFixed(1)}`;
  let path = "", stretch = [];
  [...band, null].forEach((ends, i) => {
    if (ends) return void stretch.push(i);
    if (stretch.length) path += `M${[...stretch.map((j) => at(j, 1)), ...stretch.reverse().map((j) => at(j, 0))].join("L")}Z`;
    stretch = [];
  });
  if (path) shape(chart.svg, "path", { class: "band", d: path, fill: color, stroke: color });
}
/** Rings around values with a note. */
function drawNotes(chart, { run, name }) {
  const { at = [], text } = run.notes[name] ?? {};
  for (const i of at) {
    const ring = shape(chart.svg, "circle", { class: "ring", cx: chart.toX(moments(run)[i]), cy: chart.toY(run.values[name][i]), r: 4.5 });
    shape(ring, "title", {}, `${momentText(run.axis, moments(run)[at[at.length - 1]])}: ${text}`); // the newest note
  }
}

/** Panels that share one cross hair and their scales, but that of lengths. Panel: {title, yTitle, lines: [{run, name, label, color}]}. */
function linePanels(parent, panels, wide) {
  const runs = [...new Set(panels.flatMap((panel) => panel.lines.map((line) => line.run)))];
  if (!runs.length) return;
  const at = runs.flatMap(moments);
  const x = [Math.min(...at), Math.max(Math.max(...at), Math.min(...at) + 1)];
  const heights = (some) => extent(some.flatMap((panel) => panel.lines.flatMap(({ run, name }) => [...run.values[name], ...bandOf(run, name).flat()])));
  const own = panels.some((panel) => panel.lines.some((line) => ownUnit(line.name)));
  const { axis, title: xTitle } = axisOf(runs);
  const grid = add(parent, element("div", { class: wide ? "panels wide" : "panels" }));
  const [width, height] = wide ? [470, 250] : [262, 164];
  const parts = panels.map((panel) => {
    const box = add(grid, element("div", { class: "panel" }, element("h3", { title: panel.tip ?? panel.title }, panel.title)));
    const readings = add(box, element("div", { class: "reading" }));
    const chart = frame(box, {
      width, height, x, y: heights(own ? [panel] : panels), label: `${panel.yTitle} of ${panel.title}`, xTitle, yTitle: panel.yTitle, axis,
    });
    panel.lines.forEach(({ run, name, color }) => drawBand(chart, moments(run), bandOf(run, name), color));
    panel.lines.forEach(({ run, name, color }) => drawLine(chart, moments(run), run.values[name], { stroke: color }));
    panel.lines.forEach((line) => drawNotes(chart, line));
    const cross = shape(chart.svg, "line", { class: "cross", y1: chart.top, y2: chart.floor, visibility: "hidden" });
    const marks = panel.lines.map((line) =>
      shape(chart.svg, "circle", { r: 3.2, fill: line.color, visibility: "hidden" }));
    return { panel, readings, chart, cross, marks };
  });
  function point(moment) {
    for (const { panel, readings, chart, cross, marks } of parts) {
      const found = panel.lines.map((line, index) => {
        const at = moments(line.run);
        let nearest = at.length - 1;
        if (moment !== null) at.forEach((m, i) => (Math.abs(m - moment) < Math.abs(at[nearest] - moment) ? (nearest = i) : 0));
        const value = line.run.values[line.name][nearest];
        marks[index].setAttribute("visibility", moment !== null && known(value) ? "visible" : "hidden");
        if (known(value)) {
          marks[index].setAttribute("cx", chart.toX(at[nearest]));
          marks[index].setAttribute("cy", chart.toY(value));
        }
        return { line, value, error: errorsOf(line.run, line.name)[nearest] };
      });
      cross.setAttribute("visibility", moment === null ? "hidden" : "visible");
      if (moment !== null) {
        cross.setAttribute("x1", chart.toX(moment));
        cross.setAttribute("x2", chart.toX(moment));
      }
      const few = found.length <= 6 ? found : [];
      readings.replaceChildren(
        ...few.map(({ line, value, error }) => element("span", { title: line.label }, dot(line.color), withError(value, error, line.name))),
        element("span", {}, few.length ? "" : `${found.length} layers, the first is dark`),
        element("span", {}, moment === null ? "" : momentText(axis, moment)));
    }
  }
  for (const { chart, panel } of parts) {
    chart.svg.addEventListener("pointermove", (event) => {
      const box = chart.svg.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * width;
      const wanted = x[0] + ((at - chart.left) / (chart.right - chart.left)) * (x[1] - x[0]);
      const all = [...new Set(panel.lines.flatMap((line) => moments(line.run)))];
      const moment = all.reduce((a, b) => (Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a));
      point(moment);
      if (panel.lines.length > 6) {
        const y = ((event.clientY - box.top) / box.height) * height;
        const near = panel.lines
          .map((line) => ({ line, i: moments(line.run).indexOf(moment) }))
          .map(({ line, i }) => ({ line, value: line.run.values[line.name][i], error: errorsOf(line.run, line.name)[i] }))
          .filter(({ value }) => known(value))
          .sort((a, b) => Math.abs(chart.toY(a.value) - y) - Math.abs(chart.toY(b.value) - y))[0];
        if (near) showTip(event, `${near.line.label}  ${withError(near.value, near.error, near.line.name)}`);
      }
    });
    chart.svg.addEventListener("pointerleave", () => (point(null), hideTip()));
  }
  point(null);
}
