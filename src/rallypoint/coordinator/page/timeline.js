// The rounds of a run drawn to scale: a band for the run, and a row for each node. It is drawn on a
// canvas, only what is in sight. The table of rounds has the same as text.

import { h, inFrame, say } from "./dom.js";
import { isTrouble, whyEnded } from "./history.js";
import { clock, count, dateOf, duration } from "./text.js";

const ROW = 20;
const TOP = 62;
const BAND = 30;
const ROWS_MOST = 18;
const STEPS = [
  0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200,
  10800, 21600, 43200, 86400, 172800, 604800,
];
const SPAN_LEAST_S = 0.02;
const WORDS = {
  starting: "starting", waiting: "ready, waits", standby: "on standby", active: "active", stopping: "stopping workers",
  done: "done",
};
const SIGNS = { failed: "!", hung: "∞", lost: "✕", superseded: "✕", refused: "⊘", left: "⇥", last: "▾" };
const BAD = new Set(["failed", "hung", "lost", "superseded"]);
const URGENCY = Object.keys(SIGNS); // What is drawn first keeps its place.
const SIGN_PX = 11;
const LEGEND = ["starting", "waiting", "active", "stopping", "standby", "done"];
const COLOURS = [
  "starting", "waiting", "standby", "active", "stopping", "done", "unheard", "gap", "text", "faint", "line", "bad",
  "select", "back",
];

export class Timeline {
  /** `select(number)`: called when a person selects a round. */
  constructor({ select }) {
    this.onSelect = select;
    this.data = { rounds: [], rows: [], gaps: [], terms: [], suspensions: [], start: null, now: null };
    this.view = { mode: "all", from: 0, to: 1, span: 600 };
    this.selected = null;
    this.drawing = () => this.draw();
    this.drawingRows = () => this.drawRows();
    this.top = h("canvas", { class: "top", role: "img" });
    this.rows = h("canvas", { class: "rows", "aria-hidden": "true" });
    this.spacer = h("div", { class: "spacer" }, this.rows);
    this.scroller = h(
      "div",
      { class: "scroller", tabindex: "0", role: "region", "aria-label": "Timeline: what each node did. Left and right select a round, plus and minus zoom" },
      this.spacer,
    );
    this.tip = h("div", { class: "tip", "aria-hidden": "true", hidden: true });
    this.note = h("p", { class: "help" });
    this.element = h("div", { class: "timeline" }, this.toolbar(), this.top, this.scroller, this.legend(), this.note, this.tip);
    this.listen();
  }

  toolbar() {
    const button = (text, label, action) => h("button", { type: "button", "aria-label": label, onclick: action }, text);
    this.modes = [
      ["all", "Whole run"],
      ["round", "Round"],
      ["last", "Last 10 min"],
    ].map(([mode, text]) => h("button", { type: "button", "data-mode": mode, "aria-pressed": "false", onclick: () => this.show(mode) }, text));
    return h(
      "div",
      { class: "bar" },
      h("div", { class: "chips", role: "group", "aria-label": "Which time" }, this.modes),
      h(
        "div",
        { class: "chips", role: "group", "aria-label": "Zoom and rounds" },
        button("−", "Zoom out", () => this.zoom(2)),
        button("+", "Zoom in", () => this.zoom(0.5)),
        button("‹", "Previous round", () => this.step(-1)),
        button("›", "Next round", () => this.step(1)),
      ),
    );
  }

  legend() {
    const items = LEGEND.map((kind) => h("li", {}, h("i", { class: `swatch ${kind}` }), WORDS[kind]));
    items.push(h("li", {}, h("i", { class: "swatch unheard" }), "not heard, or suspended"), h("li", {}, h("i", { class: "swatch gap" }), "not recorded"));
    items.push(h("li", {}, h("b", { class: "bad" }, "✕"), " lost"), h("li", {}, h("b", { class: "bad" }, "!"), " a worker failed"), h("li", {}, h("b", { class: "bad" }, "∞"), " a worker hangs"), h("li", {}, h("b", {}, "▾"), " ready last"));
    items.push(h("li", {}, h("b", {}, "⇥"), " left"), h("li", {}, h("b", {}, "⊘"), " refused"));
    return h("ul", { class: "legend", "aria-label": "Legend" }, items);
  }

  listen() {
    const redraw = () => this.later();
    // To ask for these while the document changes makes the browser lay it out at once.
    this.width = 0;
    this.scrolled = 0;
    this.scroller.addEventListener(
      "scroll",
      () => {
        this.scrolled = this.scroller.scrollTop;
        redraw();
      },
      { passive: true },
    );
    this.watch = new ResizeObserver(() => {
      this.width = this.element.clientWidth;
      redraw();
    });
    this.watch.observe(this.element);
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.dark.addEventListener("change", () => {
      this.colours = null;
      redraw();
    });
    this.scroller.addEventListener("keydown", (event) => this.key(event));
    for (const canvas of [this.top, this.rows]) {
      canvas.addEventListener("pointerdown", (event) => this.press(event, canvas));
      canvas.addEventListener("pointermove", (event) => this.hover(event, canvas));
      canvas.addEventListener("pointerleave", () => (this.tip.hidden = true));
      canvas.addEventListener("wheel", (event) => this.wheel(event, canvas), { passive: false });
    }
  }

  close() {
    this.watch.disconnect();
  }

  /** What to draw: rounds, rows, gaps, terms, suspensions; from `start` to `now`, in seconds. */
  set(data) {
    this.data = data;
    this.height = Math.min(data.rows.length, ROWS_MOST) * ROW;
    this.scroller.style.height = `${this.height + 2}px`;
    this.spacer.style.height = `${data.rows.length * ROW}px`;
    this.later();
  }

  choose(number) {
    this.selected = number;
    if (this.view.mode === "round") this.show("round");
    else this.reveal(number);
    this.later();
  }

  // -- what time is in sight ----------------------------------------------------------------------

  show(mode) {
    this.view.mode = mode;
    if (mode === "last") this.view.span = 600;
    if (mode === "round") {
      const round = this.data.rounds.find((each) => each.number === this.selected) ?? this.data.rounds.at(-1);
      if (!round) return this.show("all");
      if (this.selected === null) this.onSelect(round.number);
      const from = round.since ?? round.formed ?? round.at ?? this.data.start;
      const to = round.ended ?? this.data.now;
      const margin = Math.max(SPAN_LEAST_S, (to - from) * 0.06);
      Object.assign(this.view, { from: from - margin, to: to + margin });
    }
    this.later();
  }

  range() {
    const { start, now } = this.data;
    const { mode, span } = this.view;
    if (mode === "all") {
      const width = Math.max(now - start, 1);
      return { from: start - width * 0.01, to: now + width * 0.02 };
    }
    if (mode === "last" || mode === "follow") return { from: now - span, to: now + span * 0.02 };
    return this.view;
  }

  zoom(factor, at = null) {
    const { from, to } = this.range();
    const middle = at ?? (this.view.mode === "fixed" || this.view.mode === "round" ? (from + to) / 2 : to);
    const whole = Math.max(this.data.now - this.data.start, 1) * 1.1;
    const span = Math.min(whole, Math.max(SPAN_LEAST_S, (to - from) * factor));
    if (span >= whole) return this.show("all");
    const follows = this.view.mode === "all" || this.view.mode === "last" || this.view.mode === "follow";
    if (at === null && follows) {
      this.view = { mode: "follow", span };
      return this.later();
    }
    const share = (middle - from) / (to - from);
    this.view = { mode: "fixed", from: middle - span * share, to: middle + span * (1 - share), span: 600 };
    this.later();
  }

  pan(seconds) {
    const { from, to } = this.range();
    this.view = { mode: "fixed", from: from + seconds, to: to + seconds, span: 600 };
    this.later();
  }

  reveal(number) {
    const round = this.data.rounds.find((each) => each.number === number);
    if (!round || round.formed === null) return;
    const { from, to } = this.range();
    const middle = (round.formed + (round.ended ?? this.data.now)) / 2;
    if (middle < from || middle > to) this.pan(middle - (from + to) / 2);
  }

  // -- keys and pointers --------------------------------------------------------------------------

  step(by) {
    const { rounds } = this.data;
    if (!rounds.length) return;
    const index = rounds.findIndex((each) => each.number === this.selected);
    const next = index < 0 ? rounds.length - 1 : Math.min(rounds.length - 1, Math.max(0, index + by));
    this.onSelect(rounds[next].number);
  }

  key(event) {
    const action = {
      ArrowLeft: () => this.step(-1),
      ArrowRight: () => this.step(1),
      "+": () => this.zoom(0.5),
      "=": () => this.zoom(0.5),
      "-": () => this.zoom(2),
      0: () => this.show("all"),
      Home: () => this.data.rounds.length && this.onSelect(this.data.rounds[0].number),
      End: () => this.data.rounds.length && this.onSelect(this.data.rounds.at(-1).number),
    }[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action();
  }

  press(event, canvas) {
    const begin = { x: event.clientX, range: this.range() };
    let moved = false;
    const move = (now) => {
      const dx = now.clientX - begin.x;
      if (Math.abs(dx) < 4 && !moved) return;
      moved = true;
      const { from, to } = begin.range;
      const seconds = (-dx / this.plot) * (to - from);
      this.view = { mode: "fixed", from: from + seconds, to: to + seconds, span: 600 };
      this.later();
    };
    const up = (now) => {
      removeEventListener("pointermove", move);
      removeEventListener("pointerup", up);
      if (moved) return;
      const t = this.timeAt(now.clientX - canvas.getBoundingClientRect().left);
      const found = this.data.rounds.findLast((each) => (each.since ?? each.formed ?? Infinity) <= t);
      if (found) this.onSelect(found.number);
    };
    addEventListener("pointermove", move);
    addEventListener("pointerup", up);
  }

  wheel(event, canvas) {
    if (!event.ctrlKey && !event.shiftKey) return;
    event.preventDefault();
    const { from, to } = this.range();
    const delta = event.deltaY || event.deltaX;
    if (event.ctrlKey) this.zoom(delta > 0 ? 1.25 : 0.8, this.timeAt(event.clientX - canvas.getBoundingClientRect().left));
    else this.pan(((to - from) * delta) / 800);
  }

  hover(event, canvas) {
    const box = canvas.getBoundingClientRect();
    const x = event.clientX - box.left;
    const text = canvas === this.top ? this.tipOfBand(x) : this.tipOfRow(x, event.clientY - box.top);
    this.tip.hidden = !text;
    if (!text) return;
    say(this.tip, text);
    const place = this.element.getBoundingClientRect();
    this.tip.style.left = `${Math.min(event.clientX - place.left + 14, place.width - 260)}px`;
    this.tip.style.top = `${event.clientY - place.top + 16}px`;
  }

  tipOfBand(x) {
    const t = this.timeAt(x);
    const gap = this.data.gaps.find((each) => t >= (each.from ?? -Infinity) && t <= (each.to ?? this.data.now));
    if (gap) return gap.text;
    const suspended = this.data.suspensions.find((each) => t >= each.from && t <= (each.to ?? this.data.now));
    if (suspended) return suspended.text;
    const round = this.data.rounds.findLast((each) => (each.since ?? each.formed ?? Infinity) <= t);
    if (!round || (round.ended !== null && t > round.ended)) return "no round";
    if (t < round.formed) return `round ${round.number} gathers: ${duration(round.gatheringS)}`;
    const why = round.ended === null ? "active now" : `ended: ${whyEnded(round)}`;
    return `round ${round.number}, ${count(round.nodes, "node")}, ${why}`;
  }

  tipOfRow(x, y) {
    const row = this.data.rows[Math.floor((y + this.scroller.scrollTop) / ROW)];
    if (!row) return "";
    const t = this.timeAt(x);
    const near = (this.range().to - this.range().from) * (5 / this.plot);
    const mark = row.marks.find((each) => Math.abs(each.t - t) <= near);
    if (mark) return `${clock(mark.t, true)} ${mark.event.text}`;
    const part = row.segments.find((each) => each.from <= t && t <= (each.to ?? this.data.now));
    if (!part) return row.name;
    const to = part.to ?? this.data.now;
    return `${row.name}: ${WORDS[part.kind] ?? part.kind} for ${duration(to - part.from)}, from ${clock(part.from, true)}`;
  }

  timeAt(x) {
    const { from, to } = this.range();
    return from + ((x - this.left) / this.plot) * (to - from);
  }

  // -- drawing ------------------------------------------------------------------------------------

  later() {
    inFrame(this.drawing);
  }

  draw() {
    const { width } = this;
    if (!width || this.data.start === null) return;
    for (const each of this.modes) each.setAttribute("aria-pressed", String(each.dataset.mode === this.view.mode));
    const { from, to } = this.range();
    this.left = Math.min(170, Math.max(84, width * 0.16));
    this.plot = Math.max(50, width - this.left - 16);
    this.x = (t) => this.left + ((t - from) / (to - from)) * this.plot;
    this.drawTop(width, from, to);
    inFrame(this.drawingRows); // for itself: each of the two takes a while
    const { rounds, rows } = this.data;
    this.top.setAttribute(
      "aria-label",
      `Timeline of ${count(rounds.length, "round")} and ${count(rows.length, "node")}, from ${clock(from)} to ${clock(to)}. The table of rounds has the same as text.`,
    );
  }

  readColours() {
    const style = getComputedStyle(this.element);
    const found = Object.fromEntries(COLOURS.map((name) => [name, style.getPropertyValue(`--t-${name}`).trim()]));
    found.font = style.fontFamily;
    return found;
  }

  canvas(canvas, width, height) {
    const ratio = devicePixelRatio || 1;
    const [w, hh] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== w || canvas.height !== hh) {
      canvas.width = w;
      canvas.height = hh;
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    this.colours ??= this.readColours(); // They may change before the frame in which the rows are drawn.
    const c = canvas.getContext("2d");
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.clearRect(0, 0, width, height);
    c.font = `12px ${this.colours.font}`;
    c.textBaseline = "middle";
    return c;
  }

  drawTop(width, from, to) {
    const c = this.canvas(this.top, width, TOP);
    const { colours, x } = this;
    c.save();
    c.beginPath();
    c.rect(this.left, 0, this.plot + 16, TOP);
    c.clip();
    this.drawTicks(c, from, to, TOP, true);
    this.drawSelection(c, TOP);
    let edge = -Infinity;
    for (const round of this.data.rounds) {
      if (round.formed === null) continue;
      const [a, b, e] = [x(round.since ?? round.formed), x(round.formed), x(round.ended ?? this.data.now)];
      if (e < this.left || a > this.left + this.plot + 16) continue;
      if (e - edge < 0.6) continue;
      edge = e;
      c.fillStyle = colours.waiting;
      if (b - a > 0.3) c.fillRect(a, BAND + 9, b - a, 8);
      c.fillStyle = colours.active;
      c.fillRect(b, BAND + 3, Math.max(1, e - b - (e - b > 4 ? 1 : 0)), 20);
      if (e - b > 9 + 7 * String(round.number).length) {
        c.fillStyle = colours.back;
        c.fillText(round.number, b + 5, BAND + 13.5);
      }
      if (round.ended !== null && isTrouble(round)) {
        c.fillStyle = colours.bad;
        c.fillRect(Math.max(b, e - 3), BAND + 1, 3, 24);
      }
    }
    c.fillStyle = colours.unheard;
    for (const each of this.data.suspensions) c.fillRect(x(each.from), BAND + 24, Math.max(2, x(each.to ?? this.data.now) - x(each.from)), 3);
    for (const gap of this.data.gaps) this.hatch(c, gap, BAND, 26);
    for (const term of this.data.terms.slice(1)) this.dashed(c, x(term.from), 16, TOP, colours.text);
    c.restore();
    c.fillStyle = colours.text;
    c.fillText("rounds", 4, BAND + 13);
  }

  drawRows() {
    const { height } = this;
    const { from, to } = this.range();
    const c = this.canvas(this.rows, this.width - 2, height);
    const { colours } = this;
    const top = this.scrolled;
    const first = Math.max(0, Math.floor(top / ROW));
    const last = Math.min(this.data.rows.length, Math.ceil((top + height) / ROW) + 1);
    for (let index = first; index < last; index += 1) {
      const row = this.data.rows[index];
      c.fillStyle = row.isGone ? colours.faint : colours.text;
      const label = row.rank === null || row.rank === undefined ? row.name : `${row.rank}  ${row.name}`;
      c.fillText(fitted(c, label, this.left - 10), 4, index * ROW - top + ROW / 2 + 1);
    }
    c.save();
    c.beginPath();
    c.rect(this.left, 0, this.plot + 16, height);
    c.clip();
    this.drawTicks(c, from, to, height, false);
    this.drawSelection(c, height);
    for (let index = first; index < last; index += 1) this.drawRow(c, this.data.rows[index], index * ROW - top, from, to);
    for (const gap of this.data.gaps) this.hatch(c, gap, 0, height);
    for (const term of this.data.terms.slice(1)) this.dashed(c, this.x(term.from), 0, height, colours.text);
    c.restore();
  }

  drawRow(c, row, y, from, to) {
    const { colours, x } = this;
    const { now } = this.data;
    let edge = -Infinity;
    for (let index = firstAfter(row.segments, from); index < row.segments.length; index += 1) {
      const part = row.segments[index];
      if (part.from > to) break;
      const [a, b] = [x(part.from), x(part.to ?? now)];
      if (b - edge < 0.5 && part.to !== null) continue; // Nothing of it would be seen.
      edge = b;
      this.bar(c, part.kind, Math.max(a, this.left - 4), y, Math.max(0.7, Math.min(b, this.left + this.plot + 20) - Math.max(a, this.left - 4)));
    }
    c.fillStyle = colours.unheard;
    for (const part of row.unheard) {
      const [a, b] = [x(part.from), x(part.to ?? now)];
      if (b >= this.left && a <= this.left + this.plot + 16) c.fillRect(a, y + ROW - 5, Math.max(2, b - a), 3);
    }
    c.textAlign = "center";
    c.font = `bold 13px ${colours.font}`;
    for (const { mark, at } of this.placed(row.marks)) {
      const isBad = BAD.has(mark.kind);
      const sign = SIGNS[mark.kind] ?? "·";
      const middle = y + ROW / 2 + (mark.kind === "last" ? -4 : 1);
      c.strokeStyle = colours.back; // so that it is seen upon a bar
      c.lineWidth = 4;
      c.strokeText(sign, at, middle);
      c.fillStyle = isBad ? colours.bad : colours.text;
      c.fillText(sign, at, middle);
    }
    c.textAlign = "left";
    c.font = `12px ${colours.font}`;
  }

  /** The marks of a row that are in sight, and where to draw each. */
  placed(marks) {
    const sights = [];
    for (const mark of marks) {
      const at = this.x(mark.t);
      if (at >= this.left - 5 && at <= this.left + this.plot + 16) sights.push({ mark, at });
    }
    return apart(sights);
  }

  /** States differ in height and filling, not only in colour. */
  bar(c, kind, a, y, width) {
    const { colours } = this;
    c.fillStyle = colours[kind] ?? colours.faint;
    switch (kind) {
      case "active":
        c.fillRect(a, y + 3, width, 14);
        break;
      case "done":
        c.fillRect(a, y + 3, width, 14);
        c.fillStyle = colours.back;
        c.fillRect(a, y + 9, width, 2);
        break;
      case "waiting":
        c.fillRect(a, y + 7, width, 6);
        break;
      case "standby":
        c.fillRect(a, y + 5, width, 2);
        c.fillRect(a, y + 13, width, 2);
        break;
      case "stopping":
        for (let at = a; at < a + width; at += 4) c.fillRect(at, y + 5, Math.min(2, a + width - at), 10);
        break;
      default:
        c.fillRect(a, y + 9, width, 2);
    }
  }

  drawTicks(c, from, to, height, withText) {
    const { colours, x } = this;
    const least = ((to - from) / this.plot) * 92;
    const step = STEPS.find((each) => each >= least) ?? STEPS.at(-1);
    const zone = new Date(from * 1000).getTimezoneOffset() * 60;
    c.lineWidth = 1;
    for (let n = Math.ceil((from - zone) / step); n * step + zone <= to; n += 1) {
      const at = Math.round(x(n * step + zone)) + 0.5;
      c.strokeStyle = colours.line;
      c.beginPath();
      c.moveTo(at, withText ? 18 : 0);
      c.lineTo(at, height);
      c.stroke();
      if (!withText) continue;
      c.fillStyle = colours.faint;
      const text = step >= 86400 ? dateOf(n * step + zone) : clock(n * step + zone, step < 1);
      if (at + 3 + c.measureText(text).width <= this.left + this.plot + 16) c.fillText(text, at + 3, 10);
    }
  }

  drawSelection(c, height) {
    const round = this.data.rounds.find((each) => each.number === this.selected);
    if (!round || round.formed === null) return;
    const [a, b] = [this.x(round.since ?? round.formed), this.x(round.ended ?? this.data.now)];
    c.fillStyle = this.colours.select;
    c.fillRect(a - 1, 0, Math.max(3, b - a + 2), height);
  }

  hatch(c, gap, y, height) {
    const { from, to } = this.range();
    const a = Math.max(this.left - 8, this.x(gap.from ?? from));
    const b = Math.min(this.left + this.plot + 16, Math.max(a + 6, this.x(gap.to ?? to)));
    if (b < this.left || a > this.left + this.plot + 16) return;
    c.save();
    c.beginPath();
    c.rect(a, y, b - a, height);
    c.clip();
    c.strokeStyle = this.colours.gap;
    c.lineWidth = 1;
    c.beginPath();
    for (let at = a - height - ((a - height) % 6); at < b; at += 6) {
      c.moveTo(at, y + height);
      c.lineTo(at + height, y);
    }
    c.stroke();
    c.restore();
  }

  dashed(c, at, y, to, colour) {
    c.save();
    c.strokeStyle = colour;
    c.setLineDash([3, 3]);
    c.beginPath();
    c.moveTo(Math.round(at) + 0.5, y);
    c.lineTo(Math.round(at) + 0.5, to);
    c.stroke();
    c.restore();
  }
}

/**
 * Move marks so that none covers another: to the side if a more urgent one is there. One for which
 * there is no room is left out; its event is in the list.
 */
export function apart(sights) {
  if (sights.length < 2) return sights;
  sights.sort((a, b) => URGENCY.indexOf(a.mark.kind) - URGENCY.indexOf(b.mark.kind) || a.at - b.at);
  const taken = new Map(); // by steps of a sign's width, of which each has one sign at most
  const isFree = (at) => {
    const step = Math.floor(at / SIGN_PX);
    return [step - 1, step, step + 1].every((each) => !(Math.abs(taken.get(each) - at) < SIGN_PX));
  };
  return sights.filter((each) => {
    const at = [each.at, each.at + SIGN_PX, each.at - SIGN_PX].find(isFree);
    if (at === undefined) return false;
    each.at = at;
    taken.set(Math.floor(at / SIGN_PX), at);
    return true;
  });
}

/** The first of the segments, which are in order, that ends after a time. */
function firstAfter(segments, t) {
  let [low, high] = [0, segments.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((segments[middle].to ?? Infinity) < t) low = middle + 1;
    else high = middle;
  }
  return low;
}

function fitted(c, text, width) {
  if (c.measureText(text).width <= width) return text;
  let [low, high] = [0, text.length];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (c.measureText(`${text.slice(0, middle)}…`).width <= width) low = middle;
    else high = middle - 1;
  }
  return `${text.slice(0, low)}…`;
}
