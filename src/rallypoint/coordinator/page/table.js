// A table of many rows: only those in sight are in the document. A row and a cell stay the same
// elements while they show the same, so that the keyboard's focus stays.

import { h, inFrame, say } from "./dom.js";

const MARGIN_ROWS = 8;
const NEW_ROWS_MOST = 10; // in one frame, so that the browser is not busy for long

/**
 * `columns`: each with `title`; `text(row)`, what the cell shows; `make(row)`, its content if that is
 * more than text; `class`. `keyOf(row)`: what identifies a row. `rowPx`: the height of each row.
 */
export class Table {
  constructor({ label, columns, keyOf, rowPx = 32, empty = "none", mark = () => "" }) {
    Object.assign(this, { columns, keyOf, rowPx, empty, mark });
    this.rows = [];
    this.shown = new Map();
    this.drawing = () => this.draw();
    this.before = h("tr", { class: "space", "aria-hidden": "true" }, h("td", { colspan: columns.length }));
    this.after = h("tr", { class: "space", "aria-hidden": "true" }, h("td", { colspan: columns.length }));
    this.body = h("tbody", {}, this.before, this.after);
    const heads = columns.map((each) => h("th", { scope: "col", class: each.class ?? "" }, each.title));
    this.table = h("table", { class: "virtual" }, h("caption", { class: "unseen" }, label), h("thead", {}, h("tr", {}, heads)), this.body);
    this.none = h("p", { class: "none" }, empty);
    this.element = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, this.table, this.none);
    this.element.style.setProperty("--row", `${rowPx}px`);
    // What a person has scrolled, and the height, come with events: to ask for them while the document
    // changes makes the browser lay it out at once.
    this.top = 0;
    this.height = innerHeight;
    this.element.addEventListener(
      "scroll",
      () => {
        this.top = this.element.scrollTop;
        this.later();
      },
      { passive: true },
    );
    new ResizeObserver(() => {
      this.height = this.element.clientHeight || innerHeight;
      this.later();
    }).observe(this.element);
  }

  /** Show these rows. */
  set(rows) {
    this.rows = rows;
    this.table.setAttribute("aria-rowcount", rows.length + 1);
    this.none.hidden = rows.length > 0;
    this.table.hidden = rows.length === 0;
    this.later();
  }

  later() {
    inFrame(this.drawing);
  }

  draw() {
    const { rowPx, rows } = this;
    const first = Math.max(0, Math.floor(this.top / rowPx) - MARGIN_ROWS);
    const inSight = Math.ceil(this.height / rowPx) + 2 * MARGIN_ROWS;
    const end = Math.min(rows.length, first + inSight);
    let last = first;
    let fresh = 0;
    const focused = this.focused();
    const before = this.shown;
    this.shown = new Map();
    let place = this.before.nextSibling;
    for (let index = first; index < end; index += 1) {
      const key = this.keyOf(rows[index]);
      if (!before.has(key) && (fresh += 1) > NEW_ROWS_MOST) break;
      last = index + 1;
      const kept = before.get(key) ?? { tr: h("tr"), texts: [], cells: [] };
      before.delete(key);
      this.shown.set(key, kept);
      this.update(kept, rows[index], index);
      if (kept.tr === place) place = place.nextSibling;
      else this.body.insertBefore(kept.tr, place);
    }
    for (const { tr } of before.values()) tr.remove();
    this.before.firstChild.style.height = `${first * rowPx}px`;
    this.after.firstChild.style.height = `${(rows.length - last) * rowPx}px`;
    this.refocus(focused);
    if (last < end) this.later();
  }

  /** The row and the column that have the keyboard's focus; null if it is elsewhere. */
  focused() {
    const element = document.activeElement;
    if (!this.body.contains(element)) return null;
    for (const [key, { cells }] of this.shown) {
      const number = cells.findIndex((each) => each.contains(element));
      if (number >= 0) return { key, number, element };
    }
    return null;
  }

  /** Give it back, if an element was moved or made anew. */
  refocus(focused) {
    if (!focused || focused.element === document.activeElement) return;
    const cell = this.shown.get(focused.key)?.cells[focused.number];
    const found = focused.element.isConnected ? focused.element : cell?.querySelector("button, a");
    found?.focus({ preventScroll: true });
  }

  update(kept, row, index) {
    kept.tr.setAttribute("aria-rowindex", index + 2);
    const mark = this.mark(row);
    if (kept.tr.className !== mark) kept.tr.className = mark;
    this.columns.forEach((column, number) => {
      const text = String(column.text(row) ?? "");
      if (kept.texts[number] === text) return;
      let cell = kept.cells[number];
      if (!cell) {
        cell = kept.cells[number] = h(column.isHead ? "th" : "td", {
          class: column.class ?? "",
          scope: column.isHead ? "row" : null,
        });
        kept.tr.append(cell);
      }
      kept.texts[number] = text;
      if (column.make) cell.replaceChildren(...[column.make(row)].flat());
      else say(cell, text);
      if (column.hasTitle) cell.title = text;
    });
  }

  /** Bring a row into sight. */
  reveal(key) {
    const index = this.rows.findIndex((each) => this.keyOf(each) === key);
    if (index < 0) return;
    const top = index * this.rowPx;
    if (top < this.top || top + 2 * this.rowPx > this.top + this.height) {
      this.element.scrollTop = this.top = Math.max(0, top - this.height / 2);
    }
    this.later();
  }
}
