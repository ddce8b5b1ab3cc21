// What the page is made of: elements, numbers as text, colours.
// Names come from networks and files: they only ever become text nodes and attribute values, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");
const colors = ["#2f7fb5", "#d1495b", "#4f9d69", "#e09f3e", "#8d5a97", "#577590", "#b5651d", "#3d5a80"];
data.runs.forEach((run, index) => {
  run.color = colors[index % colors.length];
  run.shown = true;
});
const shownRuns = () => data.runs.filter((run) => run.shown);
const shownWith = (name) => shownRuns().filter((run) => run.values[name.name] !== undefined);
const redraws = [];

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
const runLabel = (run) => element("span", { class: "run-name" }, dot(run.color), element("span", {}, run.name));
function section(title, explanation) {
  const node = add(page, element("section", {}, element("h2", {}, title)));
  if (explanation) add(node, element("p", {}, explanation));
  return node;
}
/** Buttons of which one is pressed, or a menu where they are many. */
function choice(parent, labels, chosen, change) {
  if (labels.length > 6) return void (menu(parent, "", labels, chosen, change), change(chosen));
  const group = element("div", { class: "group" });
  const press = (index) => {
    [...group.children].forEach((b, i) => b.setAttribute("aria-pressed", String(i === index)));
    change(index);
  };
  labels.forEach((label, index) => add(group, element("button", { type: "button", onclick: () => press(index) }, label)));
  add(parent, group);
  press(chosen);
}
/** Heads are pairs of a text and a class. */
function table(parent, heads, body) {
  const row = element("tr", {}, ...heads.map(([text, kind = ""]) => element("th", { class: kind }, text)));
  add(parent, element("table", {}, element("thead", {}, row), body));
}
function menu(parent, label, options, chosen, change) {
  const select = element("select", { "aria-label": label || "measure", onchange: () => change(select.selectedIndex) });
  options.forEach((text) => add(select, element("option", {}, text)));
  select.selectedIndex = chosen;
  add(parent, element("label", {}, label, select));
  return select;
}

const known = (value) => value !== null && value !== undefined;
const format = (value, digits = 3) => (known(value) ? (Math.abs(value) < 1e-9 ? 0 : value).toFixed(digits) : "NaN");
const signed = (value, digits) => (known(value) ? (value >= 0 ? "+" : "−") + Math.abs(value).toFixed(digits) : "–");
const scales = new Map(data.names.map((name) => [name.name, name.scale]));
const ownUnit = (name) => !known(scales.get(name).low) || !known(scales.get(name).high); // of any size
const reading = (value, name) => (known(value) && ownUnit(name) ? String(Number(value.toPrecision(3))) : format(value));
/** With no more digits than the error leaves. */
function withError(value, error, name) {
  if (!known(value) || !known(error)) return reading(value, name);
  if (ownUnit(name)) return `${reading(value, name)} ± ${Number(error.toPrecision(1))}`;
  const digits = error >= 0.0095 ? 2 : 3;
  return `${format(value, digits)} ± ${format(error, digits)}`;
}
const pText = (p) => (!known(p) ? "–" : p < 0.001 ? "< 0.001" : format(p)); // smaller ones cannot be trusted
const errorsOf = (run, name) => run.errors[name] ?? [];
/** Ends of a band that covers 95 in 100. */
const bandOf = (run, name) => errorsOf(run, name).map((error, i) => {
  const value = run.values[name][i];
  return known(value) && known(error) ? [value - 1.96 * error, value + 1.96 * error] : null;
});
const sign = (note) => element("span", { class: "sign", title: note }, "⚠");
const moments = (run) => (run.axis === "epoch" ? run.epochs : run.steps);
const start = -1; // the place before epoch 0, of the measurement before training
const momentText = (axis, at) => (axis === "epoch" && at === start ? "start" : `${axis} ${at}`);
function axisOf(runs) {
  const [axis, other] = new Set(runs.map((run) => run.axis));
  if (other) return { axis: "epoch or step", title: "epoch or step" };
  const before = axis === "epoch" && runs.some((run) => run.epochs.includes(start));
  return { axis, title: before ? "epoch (start: before training)" : axis };
}
function range(values) {
  const found = values.filter(known);
  if (!found.length) return [0, 1];
  return [found.reduce((a, b) => Math.min(a, b)), found.reduce((a, b) => Math.max(a, b))];
}
function extent(values) {
  if (!values.some(known)) return [0, 1];
  const [low, high] = range(values);
  const margin = (high - low) * 0.05 || Math.abs(high) * 0.05 || 0.05;
  return [low - margin, high + margin];
}
function ticks(low, high, count, whole = false) {
  const rough = Math.max((high - low) / count, whole ? 1 : 0);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough && !(whole && size % 1));
  const found = [];
  for (let tick = Math.ceil(low / step - 1e-9); tick * step <= high + step * 1e-9; tick++) found.push(tick * step);
  return found;
}
/** Of epochs or steps: the start, where it is one, and the others that leave it room. */
function momentTicks(low, high, count, axis) {
  const found = ticks(Math.max(low, 0), high, count, true);
  return axis === "epoch" && low === start ? [start, ...found.filter((tick) => tick - start > (high - start) / 6)] : found;
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
