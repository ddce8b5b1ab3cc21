"use strict";
// As much of a browser's document as the report's program asks for.
class Node_ {
  constructor(tag) {
    Object.assign(this, { tag, attributes: {}, childNodes: [], style: {}, listeners: {}, parentElement: null, offsetWidth: 0 });
  }
  appendChild(node) {
    const child = typeof node === "object" ? node : Object.assign(new Node_("#text"), { text: String(node) });
    child.parentElement = this;
    this.childNodes.push(child);
    return child;
  }
  append(...nodes) { nodes.forEach((node) => this.appendChild(node)); }
  replaceChildren(...nodes) { this.childNodes = []; this.append(...nodes); }
  remove() { this.parentElement.childNodes = this.parentElement.childNodes.filter((node) => node !== this); }
  setAttribute(name, value) { this.attributes[name] = String(value); }
  addEventListener(name, listener) { this.listeners[name] = listener; }
  getBoundingClientRect() { return { left: 0, top: 0, width: 470, height: 250 }; }
  get children() { return this.childNodes.filter((node) => node.tag !== "#text"); }
  get firstChild() { return this.childNodes[0]; }
  set textContent(text) { this.childNodes = []; this.appendChild(text); }
  get textContent() { return this.tag === "#text" ? this.text : this.childNodes.map((node) => node.textContent).join(""); }
  get all() { return this.childNodes.flatMap((node) => [node, ...node.all]); }
}
const known_ = { page: new Node_("main"), data: new Node_("script") };
const document = {
  body: new Node_("body"),
  getElementById: (id) => known_[id],
  createElement: (tag) => new Node_(tag),
  createElementNS: (space, tag) => new Node_(tag),
};
const innerWidth = 1200;
const find_ = (tag, text) => known_.page.all.find((node) => node.tag === tag && node.textContent === text);
const section_ = (title) => find_("h2", title).parentElement;
const texts_ = (node, tag) => node.all.filter((one) => one.tag === tag).map((one) => one.textContent);
