"use strict";
// Names come from networks and files: they only ever become text nodes and attribute values, never markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const page = document.getElementById("page");
  const colors = ["#2f7fb5", "#d1495b", "#4f9d69", "#e09f3e", "#8d5a97", "#577590", "#b5651d", "#3d5a80"];
  data.runs.forEach((run, index) => {
    run.color = colors[index % colors.length];
    run.shown = true;
  });
  const shownRuns = () => data.runs.filter((run) => run.shown);
  const redraws = [];

  // ---- elements -------------------------------------------------------------------------------------------------
  const add = (parent, node) => (parent.appendChild(node), node);
  function element(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }
  function shape(parent, tag, attributes = {}, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return add(parent, node);
  }
  function dot(color) {
    const node = element("span", { class: "dot" });
    node.style.background = color;
    return node;
  }
  const runLabel = (run) => element("span", { class: "run-name" }, dot(run.color), run.name);
  function section(title, explanation) {
    const node = add(page, element("section", {}, element("h2", {}, title)));
    if (explanation) add(node, element("p", {}, explanation));
    return node;
  }
  /** Buttons of which one is pressed. */
  function choice(parent, labels, chosen, change) {
    const group = element("div", { class: "group" });
    const press = (index) => {
      [...group.children].forEach((b, i) => b.setAttribute("aria-pressed", String(i === index)));
      change(index);
    };
    labels.forEach((label, index) => add(group, element("button", { type: "button", onclick: () => press(index) }, label)));
    add(parent, group);
    press(chosen);
  }
  function menu(parent, label, options, chosen, change) {
    const select = element("select", { "aria-label": label, onchange: () => change(select.selectedIndex) });
    options.forEach((text) => add(select, element("option", {}, text)));
    select.selectedIndex = chosen;
    add(parent, element("label", {}, label, select));
    return select;
  }

  // ---- numbers --------------------------------------------------------------------------------------------------
  const known = (value) => value !== null && value !== undefined;
  const format = (value, digits = 3) => (known(value) ? (Math.abs(value) < 1e-9 ? 0 : value).toFixed(digits) : "NaN");
  const signed = (value, digits) => (known(value) ? (value >= 0 ? "+" : "−") + Math.abs(value).toFixed(digits) : "–");
  const scales = new Map(data.names.map((name) => [name.name, name.scale]));
  const ownUnit = (name) => !known(scales.get(name).low) || !known(scales.get(name).high); // of any size
  const reading = (value, name) => (known(value) && ownUnit(name) ? String(Number(value.toPrecision(3))) : format(value));
  const moments = (run) => (run.axis === "epoch" ? run.epochs : run.steps);
  function extent(values) {
    const found = values.filter(known);
    if (!found.length) return [0, 1];
    const low = found.reduce((a, b) => Math.min(a, b));
    const high = found.reduce((a, b) => Math.max(a, b));
    const margin = (high - low) * 0.05 || Math.abs(high) * 0.05 || 0.05;
    return [low - margin, high + margin];
  }
  function ticks(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    const found = [];
    for (let tick = Math.ceil(low / step - 1e-9); tick * step <= high + step * 1e-9; tick++) found.push(tick * step);
    return found;
  }
  const tickText = (tick) => String(Number(tick.toPrecision(6)));
  const mix = (stops) => (share) => {
    const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
    const index = Math.min(Math.floor(place), stops.length - 2);
    const parts = stops[index].map((part, i) => Math.round(part + (stops[index + 1][i] - part) * (place - index)));
    return `rgb(${parts.join(",")})`;
  };
  const viridis = mix([[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 168, 132], [122, 209, 81], [210, 200, 50]]);
  const heat = mix([[255, 255, 217], [199, 233, 180], [65, 182, 196], [34, 94, 168], [8, 29, 88]]);

  const tip = add(document.body, element("div", { id: "tip" }));
  function showTip(event, text) {
    tip.textContent = text;
    tip.style.display = "block";
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${event.clientY + 16}px`;
  }
  const hideTip = () => (tip.style.display = "none");

  // ---- frame of a chart -----------------------------------------------------------------------------------------
  function frame(parent, { width, height, x, y, label, xTitle, yTitle, left = 38, bottom = 22 }) {
    const svg = shape(parent, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    const right = width - 6, top = 6, floor = height - bottom;
    const toX = (value) => left + ((value - x[0]) / (x[1] - x[0] || 1)) * (right - left);
    const toY = (value) => floor - ((value - y[0]) / (y[1] - y[0] || 1)) * (floor - top);
    for (const tick of ticks(...y, 4)) {
      shape(svg, "line", { class: "grid", x1: left, x2: right, y1: toY(tick), y2: toY(tick) });
      shape(svg, "text", { x: left - 6, y: toY(tick) + 4, "text-anchor": "end" }, tickText(tick));
    }
    shape(svg, "line", { class: "axis", x1: left, x2: right, y1: floor, y2: floor });
    for (const tick of ticks(...x, Math.max(3, Math.round((right - left) / 75)))) {
      shape(svg, "text", { x: toX(tick), y: floor + 14, "text-anchor": "middle" }, tickText(tick));
    }
    if (xTitle) shape(svg, "text", { x: right, y: height - 1, "text-anchor": "end" }, xTitle);
    if (yTitle) shape(svg, "text", { x: 0, y: 0, transform: `translate(10 ${top + 4}) rotate(-90)`, "text-anchor": "end" }, yTitle);
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

  // ---- trajectories ---------------------------------------------------------------------------------------------
  /** Panels that share one cross hair and their scales, but that of lengths. Panel: {title, lines: [{run, name, label, color}]}. */
  function linePanels(parent, panels, wide) {
    const runs = [...new Set(panels.flatMap((panel) => panel.lines.map((line) => line.run)))];
    if (!runs.length) return;
    const at = runs.flatMap(moments);
    const x = [Math.min(...at), Math.max(Math.max(...at), Math.min(...at) + 1)];
    const heights = (some) => extent(some.flatMap((panel) => panel.lines.flatMap((line) => line.run.values[line.name])));
    const own = panels.some((panel) => panel.lines.some((line) => ownUnit(line.name)));
    const axis = new Set(runs.map((run) => run.axis)).size === 1 ? runs[0].axis : "epoch or step";
    const grid = add(parent, element("div", { class: wide ? "panels wide" : "panels" }));
    const [width, height] = wide ? [470, 250] : [262, 150];
    const parts = panels.map((panel) => {
      const box = add(grid, element("div", { class: "panel" }, element("h3", { title: panel.title }, panel.title)));
      const readings = add(box, element("div", { class: "reading" }));
      const chart = frame(box, { width, height, x, y: heights(own ? [panel] : panels), label: panel.title });
      panel.lines.forEach((line) =>
        drawLine(chart, moments(line.run), line.run.values[line.name], { stroke: line.color }));
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
          return { line, value };
        });
        cross.setAttribute("visibility", moment === null ? "hidden" : "visible");
        if (moment !== null) {
          cross.setAttribute("x1", chart.toX(moment));
          cross.setAttribute("x2", chart.toX(moment));
        }
        const few = found.length <= 6 ? found : [];
        readings.replaceChildren(
          ...few.map(({ line, value }) => element("span", { title: line.label }, dot(line.color), reading(value, line.name))),
          element("span", {}, few.length ? "" : `${found.length} layers, the first is dark`),
          element("span", {}, moment === null ? "" : `${axis} ${moment}`));
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
            .map((line) => ({ line, value: line.run.values[line.name][moments(line.run).indexOf(moment)] }))
            .filter(({ value }) => known(value))
            .sort((a, b) => Math.abs(chart.toY(a.value) - y) - Math.abs(chart.toY(b.value) - y))[0];
          if (near) showTip(event, `${near.line.label}  ${reading(near.value, near.line.name)}`);
        }
      });
      chart.svg.addEventListener("pointerleave", () => (point(null), hideTip()));
    }
    point(null);
  }

  const kindLabel = (kind) => [kind.measure, kind.representation, kind.condition].filter(Boolean).join(", ");
  const kinds = []; // of measures of layers
  for (const name of data.names) {
    if (name.layer === null) continue;
    let kind = kinds.find((k) => kindLabel(k) === kindLabel(name));
    if (!kind) kinds.push((kind = { measure: name.measure, representation: name.representation, condition: name.condition, names: [] }));
    kind.names.push(name);
  }
  const outputs = data.names.filter((name) => name.layer === null);

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
    const alone = kinds.filter((kind) => !known(kind.names[0].scale.same)).map((kind) => kind.measure);
    const only = alone.length ? ` Without a value that means "the same": ${[...new Set(alone)].join(", ")}.` : "";
    const node = section("Layers over training", `How similar every layer is to its counterpart in the reference.${only}`);
    const bar = add(node, element("div", { class: "bar" }));
    const body = add(node, element("div"));
    let kind = 0, byRun = kinds[0].names.length > 24 ? 1 : 0;
    const draw = () => {
      body.replaceChildren();
      const names = kinds[kind].names;
      const has = (run, name) => run.values[name.name] !== undefined;
      const panels = byRun
        ? shownRuns().map((run) => {
            const held = names.filter((name) => has(run, name));
            return {
              title: run.name,
              lines: held.map((name, index) => ({
                run, name: name.name, label: name.layer, color: viridis(index / Math.max(held.length - 1, 1)),
              })),
            };
          })
        : names.map((name) => ({
            title: name.layer,
            lines: shownRuns().filter((run) => has(run, name))
              .map((run) => ({ run, name: name.name, label: run.name, color: run.color })),
          }));
      linePanels(body, panels.filter((panel) => panel.lines.length), Boolean(byRun));
    };
    choice(bar, kinds.map(kindLabel), 0, (index) => ((kind = index), draw()));
    choice(bar, ["a panel per layer", "a panel per run"], byRun, (index) => ((byRun = index), draw()));
    redraws.push(draw);
  }

  function outputTrajectories() {
    if (!outputs.length) return;
    const groups = [...new Set(outputs.map((name) => name.scale.group))].join(" and ");
    const same = outputs.filter((name) => known(name.scale.same)).map((name) => `${name.name} ${name.scale.same}${name.scale.unit && ` ${name.scale.unit}`}`);
    const node = section(`${groups[0].toUpperCase()}${groups.slice(1)} over training`, same.length ? `The reference itself reads ${same.join(", ")}.` : "");
    const body = add(node, element("div"));
    const draw = () => {
      body.replaceChildren();
      const grid = add(body, element("div", { class: "panels" }));
      for (const name of outputs) { // each on its own scale
        const lines = shownRuns().filter((run) => run.values[name.name] !== undefined)
          .map((run) => ({ run, name: name.name, label: run.name, color: run.color }));
        if (!lines.length) continue;
        const box = element("div");
        linePanels(box, [{ title: name.name, lines }], false);
        add(grid, box.firstChild.firstChild);
      }
    };
    draw();
    redraws.push(draw);
  }

  // ---- matrices -------------------------------------------------------------------------------------------------
  function matrices() {
    const labels = [...new Set(data.runs.flatMap((run) => run.matrices.map(kindLabel)))];
    if (!labels.length) return;
    const node = section("Layer by layer", "Every layer of the network (rows) against every layer of the reference (columns), over training.");
    const bar = add(node, element("div", { class: "bar" }));
    const body = add(node, element("div", { class: "panels wide" }));
    const slider = element("input", { type: "range", min: 0, value: 0, "aria-label": "measurement", step: 1 });
    const moment = element("span", { class: "moment" });
    const play = element("button", { type: "button" }, "▶ play");
    let chosen = 0, paints = [], times = [], timer = null;
    const paint = () => {
      const at = times[slider.value];
      moment.textContent = at === undefined ? "" : `epoch ${at[0]}`;
      paints.forEach((one) => one(at));
    };
    const draw = () => {
      body.replaceChildren();
      paints = [];
      const found = shownRuns().flatMap((run) => run.matrices
        .filter((matrix) => kindLabel(matrix) === labels[chosen]).map((matrix) => ({ run, matrix })));
      times = [...new Map(found.flatMap(({ matrix }) => matrix.frames.map((f) => [`${f.epoch} ${f.step}`, [f.epoch, f.step]]))).values()]
        .sort((a, b) => a[0] - b[0] || a[1] - b[1]);
      if (new Set(found.map(({ matrix }) => matrix.frames.map((f) => f.epoch).join())).size === 1
        && new Set(times.map((at) => at[0])).size === found[0]?.matrix.frames.length) {
        times = found[0].matrix.frames.map((f) => [f.epoch, f.step]); // runs of other lengths of an epoch: by epoch
      }
      slider.max = Math.max(times.length - 1, 0);
      slider.value = slider.max;
      const all = found.flatMap(({ matrix }) => matrix.frames.flatMap((f) => f.values.filter(known)));
      const { low, high } = found[0]?.matrix.scale ?? {};
      const range = known(low) && known(high) ? [low, high] : !all.length ? [0, 1] : [all.reduce((a, b) => Math.min(a, b)), all.reduce((a, b) => Math.max(a, b))];
      found.forEach(({ run, matrix }) => paints.push(heatmap(body, run, matrix, range)));
      paint();
    };
    choice(bar, labels, 0, (index) => ((chosen = index), draw()));
    slider.addEventListener("input", paint);
    play.addEventListener("click", () => {
      if (timer) {
        clearInterval(timer);
        timer = null;
        play.textContent = "▶ play";
        return;
      }
      play.textContent = "■ stop";
      timer = setInterval(() => {
        slider.value = Number(slider.value) >= Number(slider.max) ? 0 : Number(slider.value) + 1;
        paint();
      }, 350);
    });
    bar.append(play, slider, moment);
    redraws.push(draw);
  }

  function heatmap(parent, run, matrix, range) {
    const { rows, columns } = matrix, most = Math.max(rows.length, columns.length);
    const cut = (name) => (name.length > 18 ? `${name.slice(0, 8)}…${name.slice(-9)}` : name);
    const letters = Math.max(...[...rows, ...columns].map((name) => cut(name).length));
    const margin = 12 + Math.min(letters, 18) * 6.3, cell = Math.min(44, (530 - margin - 30) / most);
    const width = 530, height = margin + cell * rows.length + 4, stride = Math.max(1, Math.ceil(11 / cell));
    const box = add(parent, element("div", { class: "panel" }, element("h3", {}, runLabel(run))));
    const svg = shape(box, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${kindLabel(matrix)} of ${run.name}` });
    rows.forEach((name, i) => {
      if (i % stride) return;
      shape(svg, "text", { class: "name", x: margin - 6, y: margin + cell * (i + 0.5) + 4, "text-anchor": "end" }, cut(name));
    });
    columns.forEach((name, j) => {
      if (j % stride) return;
      shape(svg, "text", { class: "name", transform: `translate(${margin + cell * (j + 0.5) + 4} ${margin - 6}) rotate(-90)` }, cut(name));
    });
    const written = cell >= 24;
    const cells = rows.flatMap((row, i) => columns.map((column, j) => {
      const x = margin + cell * j, y = margin + cell * i;
      const rect = shape(svg, "rect", { x, y, width: Math.max(cell - 1, cell * 0.94), height: Math.max(cell - 1, cell * 0.94), rx: cell > 12 ? 2 : 0 });
      const text = written ? shape(svg, "text", { x: x + cell / 2 - 0.5, y: y + cell / 2 + 3.5, "text-anchor": "middle" }) : null;
      if (text) text.style.fontSize = `${Math.min(11, cell * 0.36)}px`;
      return { rect, text, row, column, value: null };
    }));
    cells.forEach((one) => {
      for (const target of [one.rect, one.text]) {
        target?.addEventListener("pointermove", (event) => showTip(event, `${one.row}\nagainst ${one.column}: ${format(one.value)}`));
        target?.addEventListener("pointerleave", hideTip);
      }
    });
    const gradient = 30, scale = margin + cell * columns.length + 10, tall = cell * rows.length - 1;
    for (let i = 0; i < gradient; i++) {
      shape(svg, "rect", { x: scale, y: margin + (tall * i) / gradient, width: 8, height: tall / gradient + 0.6, fill: heat(1 - i / (gradient - 1)) });
    }
    shape(svg, "text", { x: scale + 12, y: margin + 8 }, tickText(Number(range[1].toPrecision(3))));
    shape(svg, "text", { x: scale + 12, y: margin + tall }, tickText(Number(range[0].toPrecision(3))));
    return (at) => {
      const before = matrix.frames.filter((f) => at && (f.epoch < at[0] || (f.epoch === at[0] && (f.step <= at[1] || run.axis === "epoch"))));
      const shown = before[before.length - 1]; // the newest until then
      cells.forEach((one, index) => {
        one.value = shown ? shown.values[index] : null;
        const share = known(one.value) ? (one.value - range[0]) / (range[1] - range[0] || 1) : null;
        one.rect.setAttribute("fill", share === null ? "var(--missing)" : heat(share));
        if (one.text) {
          one.text.textContent = known(one.value) ? format(one.value, 2) : "n/a";
          one.text.style.fill = share === null || share < 0.5 ? "#1f2933" : "#ffffff";
        }
      });
    };
  }

  // ---- similarity against divergence ----------------------------------------------------------------------------
  function scatter() {
    if (!kinds.length || !outputs.length) return;
    const node = section("Similarity against outputs", "One point per measurement, dark is early and bright is late; the line is the least-squares fit. Measurements of one run depend on each other: the 95% intervals are too narrow to say what another run would give.");
    const bar = add(node, element("div", { class: "bar" }));
    const row = add(node, element("div", { class: "row" }));
    const left = add(row, element("div")), right = add(row, element("div", { class: "scroll" }));
    let kind = 0, layer = 0, output = Math.max(outputs.findIndex((name) => known(name.scale.low) && name.scale.same === name.scale.low), 0);
    let layers = null;
    const of = (run, name) => data.correlations.find((c) =>
      c.run === run.name && c.name === name.name && c.output === outputs[output].name);
    const draw = () => {
      const name = kinds[kind].names[layer], target = outputs[output].name;
      layers.selectedIndex = layer;
      left.replaceChildren();
      const runs = shownRuns().filter((run) => run.values[name.name] && run.values[target]);
      const chart = frame(left, {
        width: 560, height: 380, left: 56, bottom: 38,
        x: extent(runs.flatMap((run) => run.values[name.name])), y: extent(runs.flatMap((run) => run.values[target])),
        label: `${target} against ${name.name}`, xTitle: `${name.measure} of ${name.layer}`, yTitle: target,
      });
      const all = runs.flatMap(moments);
      const [low, high] = [all.reduce((a, b) => Math.min(a, b), Infinity), all.reduce((a, b) => Math.max(a, b), -Infinity)];
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
          mark.addEventListener("pointermove", (event) => showTip(event, `${run.name}, ${run.axis} ${at}\n${name.measure} ${reading(x, name.name)}, ${target} ${reading(y, target)}`));
          mark.addEventListener("pointerleave", hideTip);
        });
      });
      right.replaceChildren(table(runs));
    };
    const table = () => {
      const body = element("tbody");
      kinds[kind].names.forEach((name, index) => {
        shownRuns().filter((run) => run.values[name.name]).forEach((run, position) => {
          const found = of(run, name);
          const interval = (value, low, high) => (found && known(value) ? `${signed(value, 2)} [${signed(low, 2)}, ${signed(high, 2)}]` : "–");
          add(body, element("tr", { class: index === layer ? "choice chosen" : "choice", onclick: () => ((layer = index), draw()) },
            element("td", {}, position ? "" : name.layer),
            element("td", {}, dot(run.color)),
            element("td", { class: "number" }, interval(found?.r, found?.rLow, found?.rHigh)),
            element("td", { class: "number" }, interval(found?.rho, found?.rhoLow, found?.rhoHigh)),
            element("td", { class: "number" }, found && known(found.slope) ? signed(found.slope, 2) : "–")));
        });
      });
      const heads = [["layer", ""], ["", ""], ["Pearson", "number"], ["Spearman", "number"], ["slope", "number"]];
      return element("table", {}, element("thead", {}, element("tr", {}, ...heads.map(([text, kind]) => element("th", { class: kind }, text)))), body);
    };
    const pickKind = element("span"), pickOutput = element("span");
    bar.append(pickKind, "against", pickOutput);
    const fill = () => {
      if (layers) layers.parentElement.remove();
      layer = Math.min(layer, kinds[kind].names.length - 1);
      layers = menu(bar, "layer", kinds[kind].names.map((name) => name.layer), layer, (index) => ((layer = index), draw()));
      draw();
    };
    layer = kinds[0].names.length - 1;
    choice(pickKind, kinds.map(kindLabel), 0, (index) => ((kind = index), fill()));
    choice(pickOutput, outputs.map((name) => name.name), output, (index) => ((output = index), draw()));
    redraws.push(draw);
  }

  // ---- tables ---------------------------------------------------------------------------------------------------
  function summary() {
    const node = section("Summary", "Trend is the slope of the least-squares line, per epoch.");
    const body = element("tbody");
    const draw = () => {
      body.replaceChildren();
      let title = null;
      for (const name of data.names) {
        const next = name.layer !== null ? kindLabel(name) : name.scale.group;
        if (next !== title) add(body, element("tr", { class: "title" }, element("td", { colspan: 8 }, (title = next))));
        shownRuns().forEach((run, position) => {
          const found = data.summary.find((r) => r.run === run.name && r.name === name.name);
          if (!found) return;
          const sparkline = element("td");
          const values = run.values[name.name];
          const same = data.names.filter((n) => kindLabel(n) === kindLabel(name));
          const y = extent(shownRuns().flatMap((r) => same.flatMap((n) => r.values[n.name] ?? [])));
          const svg = shape(sparkline, "svg", { viewBox: "0 0 110 22", "aria-hidden": "true" });
          const toX = (index) => 2 + (index / Math.max(values.length - 1, 1)) * 106;
          drawLine({ svg, toX, toY: (v) => 20 - ((v - y[0]) / (y[1] - y[0])) * 18 }, values.map((_, i) => i), values, { stroke: run.color, "stroke-width": 1.5 });
          add(body, element("tr", {},
            element("td", {}, position ? "" : (name.layer ?? name.measure)),
            element("td", {}, data.runs.length > 1 ? runLabel(run) : ""),
            ...[found.first, found.last, found.minimum].map((value) => element("td", { class: "number" }, reading(value, name.name))),
            element("td", { class: "number" }, String(found.epoch_of_minimum ?? "–")),
            element("td", { class: "number" }, ownUnit(name.name) ? reading(found.trend, name.name) : signed(found.trend, 4)),
            sparkline));
        });
      }
    };
    const heads = ["layer", data.runs.length > 1 ? "run" : "", "first", "last", "min", "at epoch", "trend", ""];
    add(node, element("div", { class: "scroll" }, element("table", {}, element("thead", {},
      element("tr", {}, ...heads.map((text, index) => element("th", { class: index > 1 && index < 7 ? "number" : "" }, text)))), body)));
    draw();
    redraws.push(draw);
  }

  function configuration() {
    const keys = [...new Set(data.runs.flatMap((run) => Object.keys(run.configuration)))];
    if (!keys.length) return;
    const many = data.runs.length > 1;
    const node = section("Configuration", many ? "What differs between the runs is marked." : "");
    const body = element("tbody");
    for (const key of keys) {
      const values = data.runs.map((run) => (Object.hasOwn(run.configuration, key) ? run.configuration[key] : "–"));
      add(body, element("tr", { class: new Set(values).size > 1 ? "differs" : "" }, element("td", {}, key),
        ...values.map((value) => element("td", {}, value))));
    }
    add(node, element("div", { class: "scroll configuration" }, element("table", {}, element("thead", {},
      element("tr", {}, element("th", {}, ""), ...data.runs.map((run) => element("th", {}, runLabel(run))))), body)));
  }

  header();
  trajectories();
  outputTrajectories();
  matrices();
  scatter();
  summary();
  configuration();
})();
