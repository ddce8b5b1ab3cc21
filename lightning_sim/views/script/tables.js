// Tables: the summary and the configuration.

function summary() {
  const node = section("Summary", "Trend is the slope of the least-squares line, per epoch; ± the standard error of the last value over other samples of the same kind; p the share of wrong pairings of the samples that read at least as similar.");
  const body = element("tbody");
  const titleOf = (name) => (name.layer !== null ? name.title : name.scale.group);
  const titles = [...new Set(data.names.map(titleOf))];
  const draw = () => {
    body.replaceChildren();
    let title = null;
    for (const name of titles.flatMap((one) => data.names.filter((n) => titleOf(n) === one))) {
      if (titleOf(name) !== title) add(body, element("tr", { class: "title" }, element("td", { colspan: 9 }, (title = titleOf(name)))));
      shownRuns().forEach((run, position) => {
        const found = data.summary.find((r) => r.run === run.name && r.name === name.name);
        if (!found) return;
        const sparkline = element("td");
        const values = run.values[name.name];
        const same = data.names.filter((n) => n.title === name.title);
        const y = extent(shownRuns().flatMap((r) => same.flatMap((n) => r.values[n.name] ?? [])));
        const svg = shape(sparkline, "svg", { viewBox: "0 0 110 22", "aria-hidden": "true" });
        const toX = (index) => 2 + (index / Math.max(values.length - 1, 1)) * 106;
        drawLine({ svg, toX, toY: (v) => 20 - ((v - y[0]) / (y[1] - y[0])) * 18 }, values.map((_, i) => i), values, { stroke: run.color, "stroke-width": 1.5 });
        add(body, element("tr", {},
          element("td", { title: name.layer ?? name.name }, position ? "" : name.label, ...(found.note ? [" ", sign(found.note)] : [])),
          element("td", {}, data.runs.length > 1 ? runLabel(run) : ""),
          ...[reading(found.first, name.name), withError(found.last, found.standard_error, name.name), reading(found.minimum, name.name)]
            .map((text) => element("td", { class: "number" }, text)),
          element("td", { class: "number" }, found.when),
          element("td", { class: "number" }, ownUnit(name.name) ? reading(found.trend, name.name) : signed(found.trend, 4)),
          element("td", { class: "number" }, pText(found.p_value)),
          sparkline));
      });
    }
  };
  const numbers = ["first", "last", "min", "min at", "trend", "p"].map((text) => [text, "number"]);
  table(add(node, element("div", { class: "scroll summary" })), [["layer"], [data.runs.length > 1 ? "run" : ""], ...numbers, [""]], body);
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
  const lines = data.runs.map((run) => Object.values(run.configuration).join("\n").split("\n").length);
  const folded = element("details", Math.max(...lines) > 12 ? {} : { open: "" }, element("summary", {}, `${keys.length} settings`));
  table(add(add(node, folded), element("div", { class: "scroll configuration" })), [[""], ...data.runs.map((run) => [runLabel(run)])], body);
}

summary();
configuration();
