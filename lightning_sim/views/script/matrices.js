// Layer by layer: the matrices over the course of training.

function matrices() {
  const labels = [...new Set(data.runs.flatMap((run) => run.matrices.map((matrix) => matrix.title)))];
  if (!labels.length) return;
  const hatched = data.runs.some((run) => run.matrices.some((matrix) => matrix.frames.some((frame) => frame.chance)));
  const has = (conditions) => data.runs.some((run) => run.matrices.some((matrix) => Boolean(matrix.conditions) === conditions));
  const node = section(has(false) ? "Layer by layer" : "Under every condition", [
    has(false) && "Every layer of the network (rows) against every layer of the reference (columns), over training.",
    has(true) && "Outputs under every condition (rows) at every epoch (columns).",
    hatched && "Hatched: within three standard deviations of what wrong pairings of the samples read.",
  ].filter(Boolean).join(" "));
  const bar = add(node, element("div", { class: "bar" }));
  const body = add(node, element("div", { class: "panels wide" }));
  const slider = element("input", { type: "range", min: 0, value: 0, "aria-label": "measurement", step: 1 });
  const moment = element("span", { class: "moment" });
  const play = element("button", { type: "button" }, "▶ play");
  let chosen = 0, paints = [], times = [], timer = null;
  const paint = () => {
    const at = times[slider.value];
    const several = at !== undefined && times.filter(([epoch]) => epoch === at[0]).length > 1;
    const text = ([epoch, step]) => momentText("epoch", epoch) + (several ? `, step ${step}` : "");
    moment.textContent = at === undefined ? "" : text(at);
    paints.forEach((one) => one(at, text));
  };
  const draw = () => {
    body.replaceChildren();
    paints = [];
    const found = shownRuns().flatMap((run) => run.matrices
      .filter((matrix) => matrix.title === labels[chosen]).map((matrix) => ({ run, matrix })));
    times = [...new Map(found.flatMap(({ matrix }) => matrix.frames.map((f) => [`${f.epoch} ${f.step}`, [f.epoch, f.step]]))).values()]
      .sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    if (new Set(found.map(({ matrix }) => matrix.frames.map((f) => f.epoch).join())).size === 1
      && new Set(times.map((at) => at[0])).size === found[0]?.matrix.frames.length) {
      times = found[0].matrix.frames.map((f) => [f.epoch, f.step]); // runs of other lengths of an epoch: by epoch
    }
    [play, slider, moment].forEach((control) => (control.style.display = times.length > 1 ? "" : "none"));
    slider.max = Math.max(times.length - 1, 0);
    slider.value = slider.max;
    const { low, high } = found[0]?.matrix.scale ?? {};
    const ends = known(low) && known(high) ? [low, high] : range(found.flatMap(({ matrix }) => matrix.frames.flatMap((f) => f.values)));
    found.forEach(({ run, matrix }) => paints.push(heatmap(body, run, matrix, ends)));
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

function heatmap(parent, run, matrix, [low, high]) {
  const { rows, columns, labels } = matrix, most = Math.max(rows.length, columns.length);
  const cut = (name) => (name.length > 18 ? `${name.slice(0, 8)}…${name.slice(-9)}` : name);
  const [margin, top] = labels.map((names) => 12 + Math.max(...names.map((name) => cut(name).length)) * 6.3);
  const shownAt = element("span");
  const box = add(parent, element("div", { class: "panel" }, element("h3", {}, runLabel(run), `, ${matrix.title}`, shownAt)));
  const width = fitting(box, 530), cell = Math.min(44, (width - margin - 30) / most);
  const height = top + cell * rows.length + 4, stride = Math.max(1, Math.ceil(11 / cell));
  const svg = shape(box, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${matrix.title} of ${run.name}` });
  labels[0].forEach((name, i) => {
    if (i % stride) return;
    shape(svg, "text", { class: "name", x: margin - 6, y: top + cell * (i + 0.5) + 4, "text-anchor": "end" }, cut(name));
  });
  labels[1].forEach((name, j) => {
    if (j % stride) return;
    shape(svg, "text", { class: "name", transform: `translate(${margin + cell * (j + 0.5) + 4} ${top - 6}) rotate(-90)` }, cut(name));
  });
  const written = cell >= 24;
  const cells = rows.flatMap((row, i) => columns.map((column, j) => {
    const x = margin + cell * j, y = top + cell * i, side = Math.max(cell - 1, cell * 0.94), half = side / 2;
    const rect = shape(svg, "rect", { x, y, width: side, height: side, rx: cell > 12 ? 2 : 0 });
    const text = written ? shape(svg, "text", { x: x + cell / 2 - 0.5, y: y + cell / 2 + 3.5, "text-anchor": "middle" }) : null;
    if (text) text.style.fontSize = `${Math.min(11, cell * 0.36)}px`;
    const hatch = `M${x} ${y + half}l${half} ${-half}M${x} ${y + side}l${side} ${-side}M${x + half} ${y + side}l${half} ${-half}`;
    return { rect, text, hatch, row, column, value: null };
  }));
  const hatches = shape(svg, "path", { class: "hatches" });
  cells.forEach((one) => {
    for (const target of [one.rect, one.text]) {
      target?.addEventListener("pointermove", (event) => showTip(event, `${one.row}\nagainst ${one.column}: ${format(one.value)}${one.byChance ? ", as chance explains" : ""}`));
      target?.addEventListener("pointerleave", hideTip);
    }
  });
  const gradient = 30, scale = margin + cell * columns.length + 10, tall = cell * rows.length - 1;
  for (let i = 0; i < gradient; i++) {
    shape(svg, "rect", { x: scale, y: top + (tall * i) / gradient, width: 8, height: tall / gradient + 0.6, fill: heat(1 - i / (gradient - 1)) });
  }
  shape(svg, "text", { x: scale + 12, y: top + 8 }, tickText(Number(high.toPrecision(3))));
  shape(svg, "text", { x: scale + 12, y: top + tall }, tickText(Number(low.toPrecision(3))));
  return (at, text) => {
    const before = matrix.frames.filter((f) => at && (f.epoch < at[0] || (f.epoch === at[0] && (f.step <= at[1] || run.axis === "epoch"))));
    const shown = before[before.length - 1]; // the newest until then
    shownAt.textContent = shown && !matrix.conditions ? `, ${text([shown.epoch, shown.step])}` : "";
    cells.forEach((one, index) => {
      one.value = shown ? shown.values[index] : null;
      one.byChance = shown?.chance?.[index] === "1";
      const share = known(one.value) ? (one.value - low) / (high - low || 1) : null;
      one.rect.setAttribute("fill", share === null ? "var(--missing)" : heat(share));
      if (one.text) {
        one.text.textContent = known(one.value) ? format(one.value, 2) : "n/a";
        one.text.style.fill = share === null || share < 0.5 ? "#1f2933" : "#ffffff";
      }
    });
    hatches.setAttribute("d", cells.map((one) => (one.byChance ? one.hatch : "")).join("") || "M0 0");
  };
}

matrices();
