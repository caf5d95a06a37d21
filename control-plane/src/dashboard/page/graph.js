// The graph: layers from callers to called, the same picture for the same edges. Texts are set as text.

const SVG = "http://www.w3.org/2000/svg";
const BOX = { width: 168, height: 40, across: 120, down: 16 };
/** Nodes of one column: a layer with more takes several. */
const TALL = 16;
/** More labels than this hide each other. */
const MOST_LABELS = 80;

export function svg(name, attributes = {}, parent = null) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (parent) parent.append(element);
  return element;
}

const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

/** Layers by the longest way from who is called by nobody; edges that would close a circle are passed over. Given nodes sorted. */
export function layers(nodes, edges) {
  const next = new Map(nodes.map((node) => [node.id, []]));
  for (const edge of edges) if (edge.from !== edge.to) next.get(edge.from)?.push(edge.to);
  for (const list of next.values()) list.sort(compare);
  const called = new Set(edges.filter((e) => e.from !== e.to).map((e) => e.to));
  const order = [];
  const state = new Map();
  const forward = new Map(nodes.map((node) => [node.id, []]));
  const visit = (start) => {
    const path = [[start, 0]];
    state.set(start, 1);
    while (path.length > 0) {
      const top = path[path.length - 1];
      const to = next.get(top[0])[top[1]++];
      if (to === undefined) {
        state.set(top[0], 2);
        order.push(top[0]);
        path.pop();
      } else if (state.get(to) !== 1) {
        forward.get(top[0]).push(to);
        if (!state.has(to)) {
          state.set(to, 1);
          path.push([to, 0]);
        }
      }
    }
  };
  for (const node of nodes) if (!called.has(node.id) && !state.has(node.id)) visit(node.id);
  for (const node of nodes) if (!state.has(node.id)) visit(node.id);
  const layer = new Map(nodes.map((node) => [node.id, 0]));
  for (const id of order.reverse()) {
    for (const to of forward.get(id)) layer.set(to, Math.max(layer.get(to), layer.get(id) + 1));
  }
  return layer;
}

/** A place for each node: by layer, then by where its neighbours are, those of a namespace together. */
export function layout(nodes, edges) {
  const sorted = [...nodes].sort((a, b) => compare(a.namespace, b.namespace) || compare(a.id, b.id));
  const layer = layers(sorted, edges);
  const columns = [];
  for (const node of sorted) (columns[layer.get(node.id)] ??= []).push(node);
  const near = new Map(sorted.map((node) => [node.id, []]));
  for (const { from, to } of edges) {
    near.get(from)?.push(to);
    near.get(to)?.push(from);
  }
  const rank = new Map();
  const note = (column) => column.forEach((node, i) => rank.set(node.id, i / Math.max(column.length, 1)));
  columns.forEach(note);
  for (let sweep = 0; sweep < 4; sweep++) {
    for (const column of sweep % 2 ? [...columns].reverse() : columns) {
      const mean = (ids) => (ids.length ? ids.reduce((sum, id) => sum + rank.get(id), 0) / ids.length : 0.5);
      const own = new Map(column.map((node) => [node.id, mean(near.get(node.id))]));
      const spaces = new Map();
      for (const node of column) {
        const sum = spaces.get(node.namespace) ?? [0, 0];
        spaces.set(node.namespace, [sum[0] + own.get(node.id), sum[1] + 1]);
      }
      const space = (node) => spaces.get(node.namespace)[0] / spaces.get(node.namespace)[1];
      column.sort((a, b) => space(a) - space(b) || compare(a.namespace, b.namespace) || own.get(a.id) - own.get(b.id) || compare(a.id, b.id));
      note(column);
    }
  }
  const places = new Map();
  let x = 0;
  const tallest = Math.min(TALL, Math.max(0, ...columns.map((c) => c.length)));
  for (const column of columns) {
    const parts = Math.ceil(column.length / TALL);
    const each = Math.ceil(column.length / parts);
    for (let part = 0; part < parts; part++) {
      const some = column.slice(part * each, (part + 1) * each);
      const top = ((tallest - some.length) * (BOX.height + BOX.down)) / 2;
      some.forEach((node, i) => places.set(node.id, { x, y: top + i * (BOX.height + BOX.down) }));
      x += BOX.width + (part + 1 < parts ? 40 : BOX.across);
    }
  }
  return places;
}

export class Graph {
  constructor(root, chosen) {
    this.root = root;
    this.onChosen = chosen;
    const defs = svg("defs", {}, root);
    const marker = svg("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto", markerUnits: "userSpaceOnUse" }, defs);
    svg("path", { d: "M0 0L8 4L0 8z", fill: "context-stroke" }, marker);
    this.edgeLayer = svg("g", { "aria-hidden": "true" }, root);
    this.nodeLayer = svg("g", {}, root);
    this.nodes = new Map();
    this.edges = new Map();
    this.places = new Map();
    this.shape = "";
    this.view = null;
    this.chosen = null;
    this.at = null;
    root.addEventListener("keydown", (event) => this.key(event));
    root.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      this.zoom(event.deltaY > 0 ? 1.15 : 1 / 1.15);
    }, { passive: false });
    let drag = null;
    root.addEventListener("pointerdown", (event) => {
      if (!event.target.closest(".node")) drag = [event.clientX, event.clientY, { ...this.view }];
    });
    root.addEventListener("pointermove", (event) => {
      if (!drag || !this.view) return;
      const scale = drag[2].width / root.clientWidth;
      this.view = { ...drag[2], x: drag[2].x - (event.clientX - drag[0]) * scale, y: drag[2].y - (event.clientY - drag[1]) * scale };
      this.look();
    });
    for (const end of ["pointerup", "pointercancel", "pointerleave"]) root.addEventListener(end, () => (drag = null));
  }

  /** Shows nodes ({id, namespace, label, under, kind, failing, said}) and edges ({from, to, secured, rate, label, failing}). */
  show(nodes, edges) {
    const shape = JSON.stringify([nodes.map((n) => n.id), edges.map((e) => [e.from, e.to])]);
    const anew = shape !== this.shape;
    if (anew) {
      this.shape = shape;
      this.places = layout(nodes, edges);
    }
    this.keep(this.nodes, nodes, (n) => n.id, this.nodeLayer, (n) => this.makeNode(n), (parts, n) => this.setNode(parts, n));
    const labels = edges.length <= MOST_LABELS;
    this.keep(this.edges, edges, (e) => `${e.from}\n${e.to}`, this.edgeLayer, () => this.makeEdge(), (parts, e) => this.setEdge(parts, e, labels));
    if (anew) {
      // Tab goes to one node, arrows to the others.
      if (!this.nodes.has(this.at)) this.at = this.order()[0] ?? null;
      this.rove();
      this.fit();
    }
    if (this.chosen && !this.nodes.has(this.chosen)) this.choose(null);
    this.fade();
  }

  keep(known, wanted, key, layer, make, set) {
    const keys = new Set(wanted.map(key));
    for (const [id, parts] of known) {
      if (!keys.has(id)) {
        parts.group.remove();
        known.delete(id);
      }
    }
    for (const one of wanted) {
      let parts = known.get(key(one));
      if (!parts) {
        parts = make(one);
        known.set(key(one), parts);
        layer.append(parts.group);
      }
      parts.is = one;
      set(parts, one);
    }
  }

  makeNode(node) {
    const group = svg("g", { role: "button", tabindex: -1 });
    group.dataset.id = node.id;
    const rect = svg("rect", { width: BOX.width, height: BOX.height, rx: 6 }, group);
    const label = svg("text", { x: 8, y: 17 }, group);
    const under = svg("text", { x: 8, y: 32, class: "under" }, group);
    const title = svg("title", {}, group);
    group.addEventListener("click", () => {
      this.at = node.id;
      this.rove();
      this.choose(node.id);
    });
    return { group, rect, label, under, title };
  }

  setNode({ group, label, under, title }, node) {
    const { x, y } = this.places.get(node.id);
    group.setAttribute("transform", `translate(${x} ${y})`);
    group.setAttribute("class", `node ${node.kind}${node.failing ? " failing" : ""}`);
    group.setAttribute("aria-label", node.said);
    write(label, short(node.label, 25));
    write(under, short(node.under, 29));
    write(title, node.said);
  }

  makeEdge() {
    const group = svg("g");
    const path = svg("path", { "marker-end": "url(#arrow)" }, group);
    const text = svg("text", {}, group);
    return { group, path, text };
  }

  setEdge({ group, path, text }, edge, labels) {
    const a = this.places.get(edge.from);
    const b = this.places.get(edge.to);
    const { width: w, height: h } = BOX;
    let d, middle;
    if (edge.from === edge.to) {
      d = `M${a.x + w - 30} ${a.y}c0 -26 -40 -26 -40 0`;
      middle = [a.x + w - 50, a.y - 22];
    } else {
      const back = b.x <= a.x;
      const [x1, y1, x2, y2] = [a.x + (back ? 0 : w), a.y + h / 2, b.x + (back ? w : 0), b.y + h / 2];
      const bend = Math.max(40, Math.abs(x2 - x1) / 2) * (back ? -1 : 1);
      d = `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
      middle = [(x1 + x2) / 2, (y1 + y2) / 2 - 4];
    }
    path.setAttribute("d", d);
    path.setAttribute("stroke-width", (1.2 + Math.min(4, Math.log10(1 + edge.rate) * 1.6)).toFixed(2));
    group.setAttribute("class", `edge ${edge.secured}${edge.failing ? " failing" : ""}${edge.rate > 0 ? "" : " quiet"}`);
    text.setAttribute("x", middle[0]);
    text.setAttribute("y", middle[1]);
    write(text, labels || edge.failing ? edge.label : "");
  }

  order() {
    const at = (id) => this.places.get(id);
    return [...this.nodes.keys()].sort((a, b) => at(a).x - at(b).x || at(a).y - at(b).y);
  }

  rove() {
    for (const [id, parts] of this.nodes) parts.group.setAttribute("tabindex", id === this.at ? 0 : -1);
  }

  choose(id) {
    this.chosen = id;
    for (const [other, parts] of this.nodes) parts.group.setAttribute("aria-pressed", other === id);
    this.fade();
    this.onChosen(id ? this.nodes.get(id).is : null);
  }

  fade() {
    const near = new Set([this.chosen]);
    for (const { is } of this.edges.values()) {
      if (is.from === this.chosen) near.add(is.to);
      if (is.to === this.chosen) near.add(is.from);
    }
    for (const [id, parts] of this.nodes) {
      parts.group.classList.toggle("chosen", id === this.chosen);
      parts.group.classList.toggle("faded", this.chosen !== null && !near.has(id));
    }
    for (const { group, is } of this.edges.values()) {
      group.classList.toggle("faded", this.chosen !== null && is.from !== this.chosen && is.to !== this.chosen);
    }
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const on = event.target.closest(".node")?.dataset.id;
    if (steps[event.key] && on) this.move(on, ...steps[event.key]);
    else if ((event.key === "Enter" || event.key === " ") && on) this.choose(on);
    else if (event.key === "Escape") this.choose(null);
    else if (event.key === "Home" && on) this.focus(this.order()[0]);
    else if (event.key === "End" && on) this.focus(this.order().at(-1));
    else if (event.key === "+" || event.key === "=") this.zoom(1 / 1.25);
    else if (event.key === "-") this.zoom(1.25);
    else if (event.key === "0") this.fit();
    else return;
    event.preventDefault();
  }

  /** To the nearest node that way. */
  move(from, dx, dy) {
    const here = this.places.get(from);
    let best = null;
    for (const id of this.nodes.keys()) {
      const { x, y } = this.places.get(id);
      const along = (x - here.x) * dx + (y - here.y) * dy;
      if (along <= 0) continue;
      const cost = along + 2 * Math.abs((x - here.x) * dy + (y - here.y) * dx);
      if (!best || cost < best[0]) best = [cost, id];
    }
    if (best) this.focus(best[1]);
  }

  focus(id) {
    if (!id) return;
    this.at = id;
    this.rove();
    this.nodes.get(id).group.focus({ preventScroll: true });
    const { x, y } = this.places.get(id);
    const v = this.view;
    if (x < v.x || y < v.y || x + BOX.width > v.x + v.width || y + BOX.height > v.y + v.height) {
      this.view = { ...v, x: x + BOX.width / 2 - v.width / 2, y: y + BOX.height / 2 - v.height / 2 };
      this.look();
    }
  }

  fit() {
    const all = [...this.places.values()];
    if (all.length === 0) return;
    const [right, bottom] = [Math.max(...all.map((p) => p.x)) + BOX.width, Math.max(...all.map((p) => p.y)) + BOX.height];
    const top = Math.min(...all.map((p) => p.y));
    this.view = { x: -30, y: top - 40, width: Math.max(right + 60, 500), height: Math.max(bottom - top + 80, 240) };
    this.look();
  }

  zoom(by) {
    if (!this.view) return;
    const { x, y, width, height } = this.view;
    this.view = { x: x + (width * (1 - by)) / 2, y: y + (height * (1 - by)) / 2, width: width * by, height: height * by };
    this.look();
  }

  look() {
    const { x, y, width, height } = this.view;
    this.root.setAttribute("viewBox", [x, y, width, height].map((n) => n.toFixed(1)).join(" "));
  }
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function short(text, most) {
  const letters = [...text];
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : text;
}
