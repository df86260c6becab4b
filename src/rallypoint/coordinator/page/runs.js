// All runs of this coordinator and of its ledger, those that need a person first.

import { get } from "./api.js";
import { announce, fill, h, say } from "./dom.js";
import { Table } from "./table.js";
import { attention, bytes, count, counting, hasNoRound, nowMs, phaseWord, whole } from "./text.js";

const EVERY_MS = 1000;
const PAGES_MAX = 5;
const FILTERS = [
  ["all", "All", () => true],
  ["attention", "Need attention", (run) => attention(run).level <= 2],
  ["waiting", "Waiting", (run) => run.phase === "gathering" || run.phase === "committing"],
  ["active", "Active", (run) => run.phase === "active"],
  ["closed", "Ended", (run) => run.phase === "closed"],
];

export async function showRuns(page, body, signal) {
  let runs = [];
  let filter = "all";
  const head = h("p", { class: "lead" }, "Loading the runs …");
  const problem = h("p", { class: "bad" });
  const search = h("input", { type: "search", id: "search", placeholder: "Filter by name or reason", oninput: draw });
  const order = h(
    "select",
    { id: "order", onchange: draw },
    h("option", { value: "attention" }, "attention"),
    h("option", { value: "name" }, "name"),
    h("option", { value: "since" }, "newest change"),
  );
  const buttons = FILTERS.map(([key, title]) =>
    h("button", { type: "button", "aria-pressed": String(key === filter), "data-key": key, onclick: () => choose(key) }, title),
  );
  const table = runTable();
  fill(
    body,
    h("h1", {}, "Runs"),
    head,
    problem,
    h(
      "div",
      { class: "bar" },
      h("div", { class: "chips", role: "group", "aria-label": "Which runs" }, buttons),
      h("label", { class: "unseen", for: "search" }, "Filter by name or reason"),
      search,
      h("label", { for: "order" }, "Order by "),
      order,
    ),
    table.element,
  );
  const ticking = setInterval(draw, 1000);
  signal.addEventListener("abort", () => clearInterval(ticking));
  page.onFreshness = draw;

  function choose(key) {
    filter = key;
    for (const each of buttons) each.setAttribute("aria-pressed", String(each.dataset.key === key));
    draw();
  }

  function draw() {
    const fits = FILTERS.find(([key]) => key === filter)[2];
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = runs.filter((run) => fits(run) && words.every((word) => textOf(run).includes(word)));
    table.set(found.sort(ORDERS[order.value]));
  }

  async function look() {
    const began = performance.now();
    const found = await list(signal);
    const asked = performance.now();
    for (const run of found.runs) run.seenMs = asked;
    tellChanges(runs, found.runs);
    runs = found.runs;
    const urgent = runs.filter((run) => attention(run).level <= 2).length;
    const asks = urgent ? `${urgent === 1 ? "one needs" : `${urgent} need`} attention` : "none needs attention";
    const more = found.more ? ` (only the first ${whole(runs.length)} are listed)` : "";
    say(head, runs.length ? `${count(runs.length, "run")}${more}, ${asks}.` : "No runs. A run begins when its first node attaches.");
    say(problem, found.problem ?? "");
    page.fresh();
    page.connection("live", coordinatorText(found.coordinator));
    draw();
    // A coordinator that needs long for an answer is not asked as often.
    return Math.max(EVERY_MS, 5 * (asked - began));
  }
  await page.loop(look, signal, page.notice);
}

async function list(signal) {
  let after = "";
  let first = null;
  for (let number = 0; number < PAGES_MAX; number += 1) {
    const found = await get(`api/v1/runs?limit=1000${after}`, signal);
    if (first) {
      first.runs.push(...found.runs);
      first.problem ??= found.problem;
    } else first = found;
    if (!found.next) return first;
    after = `&after=${encodeURIComponent(found.next)}`;
  }
  first.more = true;
  return first;
}

function tellChanges(before, after) {
  if (!before.length) return;
  const known = new Map(before.map((run) => [run.run_id, run.phase]));
  for (const run of after) {
    const was = known.get(run.run_id);
    if (was !== undefined && was !== run.phase) announce(`${run.run_id} is ${phaseWord(run)}`);
  }
}

function coordinatorText(it) {
  if (!it) return "live";
  return `live · ${it.host} · ${it.software} · ${count(it.connections, "connection")} · ${bytes(it.memory_bytes)}`;
}

/** How long the run has been in its phase, in seconds; null if that is unknown. */
export function phaseSeconds(run) {
  if (run.phase_s === null || run.phase_s === undefined) return null;
  return run.phase_s + (nowMs() - run.seenMs) / 1000;
}

const ORDERS = {
  attention: (a, b) => attention(a).level - attention(b).level || longest(a, b) || byName(a, b),
  name: byName,
  since: (a, b) => (a.phase_s ?? Infinity) - (b.phase_s ?? Infinity) || byName(a, b),
};

/** Of runs that wait, the longest first; of others, the newest change first. */
function longest(a, b) {
  const difference = (b.phase_s ?? 0) - (a.phase_s ?? 0);
  return attention(a).level <= 3 ? difference : -difference;
}

function byName(a, b) {
  return a.run_id < b.run_id ? -1 : a.run_id > b.run_id ? 1 : 0;
}

/** Why a run waits or has ended; of an active one, how far its workers are. */
function why(run) {
  return run.reason || run.progress?.in_words || "";
}

function textOf(run) {
  return `${run.run_id} ${why(run)} ${phaseWord(run)} ${run.owner?.process ?? ""}`.toLowerCase();
}

/** The state of a run as a coloured word. */
export function chip(run) {
  return h("span", { class: "chip", "data-tone": attention(run).tone }, phaseWord(run));
}

function runTable() {
  const number = (name) => (run) => run[name] ?? "?";
  const ofRound = (name) => (run) => (hasNoRound(run) ? "–" : (run[name] ?? "?"));
  return new Table({
    label: "Runs",
    rowPx: 46,
    empty: "No run to show.",
    keyOf: (run) => run.run_id,
    mark: (run) => (attention(run).level <= 2 ? "urgent" : ""),
    columns: [
      { title: "State", text: (run) => `${phaseWord(run)}${attention(run).tone}`, make: chip, class: "tight" },
      {
        title: "Run",
        isHead: true,
        hasTitle: true,
        class: "name",
        text: (run) => run.run_id,
        make: (run) => h("a", { href: `#/runs/${encodeURIComponent(run.run_id)}` }, run.run_id),
      },
      {
        title: "Why",
        class: "why",
        hasTitle: true,
        text: why,
        make: (run) => h("span", { class: "two" }, why(run)),
      },
      { title: "Since", class: "number", text: (run) => counting(phaseSeconds(run)) || "?" },
      { title: "Attached", class: "number", text: number("attached") },
      { title: "Round", class: "number", text: number("round") },
      { title: "Nodes", class: "number wide", text: ofRound("nodes") },
      { title: "Workers", class: "number wide", text: ofRound("size") },
      { title: "Restarts", class: "number wide", text: number("restart_count") },
      { title: "Coordinator", class: "wide tight", hasTitle: true, text: (run) => run.owner?.addresses?.[0] ?? (run.owner ? run.owner.process : "") },
      { title: "Term", class: "number wide", text: (run) => run.term ?? "" },
    ],
  });
}
