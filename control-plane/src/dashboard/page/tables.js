// Tables and lists. Rows stay where their key stays, so that focus and selection do; texts are set as text.

import { svg } from "./graph.js";

/** An element with a text and a class. */
export function element(name, text = "", kind = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

/** Rows of more are not drawn; the search narrows them. */
const MOST_ROWS = 500;

export class Table {
  /** Columns are {name, of, text, kind, number, sort}: `of` gives what is sorted by, `text` what is written. */
  constructor(table, columns, key, { by = null, falling = false, none = "Nothing." } = {}) {
    Object.assign(this, { table, columns, key, by: by ?? columns[0].name, falling, none, rows: [], known: new Map() });
    const head = table.createTHead().insertRow();
    this.heads = columns.map((column) => {
      const cell = document.createElement("th");
      cell.scope = "col";
      if (column.number) cell.className = "number";
      if (column.of) {
        const button = element("button", column.name);
        button.type = "button";
        button.addEventListener("click", () => {
          this.falling = this.by === column.name ? !this.falling : Boolean(column.number);
          this.by = column.name;
          this.draw();
        });
        cell.append(button);
      } else {
        cell.textContent = column.name;
      }
      head.append(cell);
      return cell;
    });
    this.body = table.createTBody();
  }

  show(rows) {
    this.rows = rows;
    this.draw();
  }

  draw() {
    const by = this.columns.find((column) => column.name === this.by);
    this.columns.forEach((column, i) => {
      if (column.of) this.heads[i].setAttribute("aria-sort", column !== by ? "none" : this.falling ? "descending" : "ascending");
    });
    const sign = this.falling ? -1 : 1;
    const rank = (row) => by.of(row) ?? -Infinity;
    const order = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
    const sorted = [...this.rows].sort((a, b) => sign * order(rank(a), rank(b)) || order(this.key(a), this.key(b))).slice(0, MOST_ROWS);
    const known = new Map();
    const lines = sorted.map((row) => {
      const key = this.key(row);
      const line = this.known.get(key) ?? this.line();
      known.set(key, line);
      this.columns.forEach((column, i) => this.cell(line.cells[i], column, row));
      return line;
    });
    this.known = known;
    const more = this.rows.length - sorted.length;
    if (more > 0 || lines.length === 0) {
      const line = document.createElement("tr");
      const cell = element("td", more > 0 ? `${more} more rows: search for a name to narrow them.` : this.none, "hint");
      cell.colSpan = this.columns.length;
      line.append(cell);
      lines.push(line);
    }
    const same = lines.length === this.body.rows.length && lines.every((line, i) => this.body.rows[i] === line);
    if (!same) {
      // Taking rows out and in takes the focus away; nothing in them has it but links.
      this.body.replaceChildren(...lines);
    }
  }

  line() {
    const line = document.createElement("tr");
    for (const column of this.columns) line.append(element("td", "", column.number ? "number" : ""));
    return line;
  }

  cell(cell, column, row) {
    if (column.draw) {
      column.draw(cell, row);
      return;
    }
    const text = column.text(row);
    if (cell.textContent !== text) cell.textContent = text;
    const kind = [column.number ? "number" : "", column.kind?.(row) ?? ""].join(" ").trim();
    if (cell.className !== kind) cell.className = kind;
  }
}

/** Requests over time, and those of them that failed. */
export function spark(cell, series) {
  const told = JSON.stringify(series);
  if (cell.dataset.told === told) return;
  cell.dataset.told = told;
  if (!series.some(([all]) => all > 0)) {
    cell.replaceChildren();
    return;
  }
  const most = Math.max(...series.map(([all]) => all));
  const picture = svg("svg", { class: "spark", viewBox: `0 0 ${series.length * 4} 20`, preserveAspectRatio: "none", role: "img" });
  picture.setAttribute("aria-label", `requests over time, at most ${most} in a piece`);
  series.forEach(([all, failed], i) => {
    if (all === 0) return;
    const bar = (n, kind) => svg("rect", { x: i * 4, width: 3, y: 20 - (20 * n) / most, height: (20 * n) / most, class: kind }, picture);
    bar(all, "all");
    if (failed > 0) bar(failed, "failed");
  });
  cell.replaceChildren(picture);
}

/** Names with values, as a list. */
export function facts(pairs) {
  const list = document.createElement("dl");
  for (const [name, value, kind] of pairs) list.append(element("dt", name), element("dd", value, kind ?? ""));
  return list;
}
