// One run, live: why it waits, its rounds to scale, its members, its events, its coordinators.

import { ApiError, Backoff, get, pause, runPath, stream, visible } from "./api.js";
import { confirmAction } from "./dialogs.js";
import { announce, fill, h, inFrame, nextTask, say } from "./dom.js";
import { History, IMPORTANT, isTrouble, linesOf, waitedFor, whyEnded } from "./history.js";
import { chip, phaseSeconds } from "./runs.js";
import { Table } from "./table.js";
import { attention, clock, count, counting, day, duration, hasNoRound, nowMs, pace, phaseWord, sizeOf, some, spans, whole } from "./text.js";
import { Timeline } from "./timeline.js";

const IDLE_MS = 2000;
const LEAST_MS = 100;
const LARGE = 200;
const EVENTS_SHOWN = 60;
const EVENTS_AT_ONCE = 50;
const ALONE_MS = 2000;
const NAMED = 8;

export async function showRun(page, body, signal, runId) {
  const view = new RunView(page, body, signal, runId);
  await Promise.all([view.followStatus(), view.followEvents(), view.followCoordinators()]);
}

class RunView {
  constructor(page, body, signal, runId) {
    Object.assign(this, { page, body, signal, runId });
    this.history = new History();
    this.status = null;
    this.members = [];
    this.selected = null;
    this.follows = true;
    this.importantOnly = false;
    this.eventsShown = EVENTS_SHOWN;
    this.wake = () => {};
    this.drawing = () => this.drawRounds();
    this.build();
    const ticking = setInterval(() => this.tick(), 500);
    page.onFreshness = () => this.status && this.drawStatus();
    signal.addEventListener("abort", () => {
      clearInterval(ticking);
      this.timeline.close();
    });
  }

  // -- what the page has --------------------------------------------------------------------------

  build() {
    this.title = h("h1", {}, this.runId);
    this.facts = h("p", { class: "facts" }, "Loading …");
    this.why = h("section", { class: "why-box", "aria-label": "Why" });
    this.actions = h("div", { class: "actions" });
    this.timeline = new Timeline({ select: (number) => this.select(number) });
    this.detail = h("div", { class: "detail", "aria-live": "polite" });
    this.rounds = this.roundTable();
    this.search = h("input", { type: "search", id: "member-search", placeholder: "Filter", oninput: () => this.drawMembers() });
    this.memberCount = h("span", { class: "help" });
    this.more = h("button", { type: "button", hidden: true, onclick: () => this.loadAll() }, "Load all");
    this.memberTable = this.makeMemberTable();
    this.orders = h("ul", { class: "orders" });
    this.events = h("ol", { class: "events" });
    this.eventNote = h("p", { class: "help" });
    this.earlier = h("button", { type: "button", hidden: true, onclick: () => this.showEarlier() }, "Show earlier events");
    this.important = h("input", { type: "checkbox", id: "important", onchange: () => this.filterEvents() });
    this.coordinators = h("div", {});
    const section = (title, ...content) => h("section", { class: "card", "aria-label": title }, h("h2", {}, title), content);
    fill(
      this.body,
      h("div", { class: "head" }, h("div", {}, this.title, this.facts), this.actions),
      this.why,
      section("Timeline", this.timeline.element, this.detail),
      section(
        "Members",
        h("div", { class: "bar" }, this.memberCount, this.more, h("label", { class: "unseen", for: "member-search" }, "Filter members"), this.search),
        this.memberTable.element,
        this.orders,
      ),
      h(
        "div",
        { class: "two-columns below" },
        section("Rounds", this.rounds.element),
        section(
          "Events",
          h("div", { class: "bar" }, h("label", { for: "important" }, this.important, " only what matters"), this.eventNote),
          this.events,
          this.earlier,
        ),
      ),
      section("Coordinators", this.coordinators),
    );
  }

  roundTable() {
    return new Table({
      label: "Rounds, the newest first",
      empty: "No round yet.",
      keyOf: (each) => each.number,
      mark: (each) => `${each.number === this.selected ? "selected " : ""}${isTrouble(each) ? "trouble" : ""}`,
      columns: [
        {
          title: "Round",
          isHead: true,
          text: (each) => `${each.number}${each.number === this.selected ? " selected" : ""}`,
          make: (each) =>
            h(
              "button",
              {
                type: "button", class: "plain", "aria-pressed": String(each.number === this.selected), onclick: () => this.select(each.number),
                onkeydown: (event) => this.roundKey(event, each.number),
              },
              each.number,
            ),
        },
        { title: "Formed", class: "tight", text: (each) => clock(each.formed) },
        { title: "Nodes", class: "number", text: (each) => (each.nodes === null ? "?" : whole(each.nodes)) },
        { title: "Gathered", class: "number", text: (each) => duration(each.gatheringS) || "?" },
        { title: "Lasted", class: "number", text: (each) => this.lasted(each) },
        { title: "Ended", class: "why", hasTitle: true, text: (each) => whyEnded(each) },
      ],
    });
  }

  makeMemberTable() {
    return new Table({
      label: "Members",
      empty: "No members.",
      keyOf: (each) => each.name,
      mark: (each) => ((each.link && each.link !== "connected") || each.progress?.is_behind ? "trouble" : ""),
      columns: [
        { title: "Rank", class: "number", text: (each) => each.node_rank ?? "–" },
        { title: "Node", isHead: true, hasTitle: true, class: "name", text: (each) => each.name },
        { title: "State", class: "tight", hasTitle: true, text: (each) => this.leaving(each) || (each.state ?? "?") },
        { title: "Heard", class: "tight", text: (each) => this.heard(each), make: (each) => h("span", { class: each.link === "connected" || !each.link ? "" : "bad" }, this.heard(each)) },
        { title: "Step", class: "number progress", text: (each) => stepOf(each), make: (each) => h("span", { class: each.progress?.is_behind ? "bad" : "" }, stepOf(each)) },
        { title: "Advanced", class: "tight progress", text: (each) => this.advanced(each) },
        { title: "Host", class: "tight", hasTitle: true, text: (each) => each.host },
        { title: "Worker ranks", class: "tight", hasTitle: true, text: (each) => spans(each.ranks) || "–" },
        { title: "Labels", class: "labels", hasTitle: true, text: (each) => Object.entries(each.labels ?? {}).map(([key, value]) => `${key}=${value}`).join(" ") },
        { title: "Actions", class: "tight", text: () => (this.mayAct() ? "may" : ""), make: (each) => this.nodeButtons(each.name) },
      ],
    });
  }

  nodeButtons(name) {
    if (!this.mayAct()) return [];
    return [this.nodeButton("drain", "Drain", name), " ", this.nodeButton("evict", "Evict", name)];
  }

  nodeButton(action, text, node) {
    return h("button", { type: "button", class: "small", "aria-label": `${text} ${node}`, onclick: () => confirmAction(action, this.runId, { node }) }, text);
  }

  mayAct() {
    return this.status !== null && this.status.phase !== "closed" && !this.page.whyNot("this");
  }

  /** When the coordinator has heard a member last, as far as that is known. */
  heard(member) {
    if (!member.link) return "?";
    if (member.link === "connected") {
      const suspectS = this.status?.settings?.suspect_after_s;
      return suspectS ? `< ${duration(suspectS)} ago` : "connected";
    }
    const seconds = (member.troubled_s ?? 0) + (nowMs() - this.seenMs) / 1000;
    const since = `${member.link === "silent" ? "silent" : "no connection"} for ${counting(seconds)}`;
    return member.evidence ? `${since}: ${member.evidence}` : since;
  }

  /** When its workers have advanced last, and how quick they are. */
  advanced(member) {
    const it = member.progress;
    if (!it) return "";
    const ago = `${counting(it.advanced_ago_s + (nowMs() - this.seenMs) / 1000)} ago`;
    if (it.steps_per_s === null) return ago;
    return it.steps_per_s ? `${ago}, ${pace(it.steps_per_s)}` : `${ago}, stands still`;
  }

  /** Until when and why a member leaves the round, or stays out of rounds; "" if it does neither. */
  leaving(member) {
    if (member.draining) return `draining,${this.until(member.draining_left_s, "leaves by")}: ${member.draining}`;
    if (member.drained) return `${member.state}, drained by ${member.drained}`;
    if (member.cooling && (member.node_rank ?? null) !== null) {
      return `${member.state}, for want of others: ${member.cooling_why || member.cooling}`;
    }
    if (member.cooling_why) return `stays out${this.until(member.cooling_left_s, "until")}: ${member.cooling_why}`;
    return member.cooling ? `stays out, ${member.cooling}` : "";
  }

  /** When something ends, by the clock of the coordinator's host. */
  until(leftS, what) {
    if (leftS === null || leftS === undefined) return "";
    return ` ${what} ${clock(this.status.shown_at + leftS)}`;
  }

  lasted(round) {
    if (round.activeS !== null && round.activeS !== undefined) return duration(round.activeS);
    if (round.formed === null) return "?";
    if (round.ended === null) return counting(Math.max(0, this.now() - round.formed));
    return round.activeMinS ? `≥ ${duration(round.activeMinS)}` : duration(round.ended - round.formed);
  }

  // -- the status ---------------------------------------------------------------------------------

  async followStatus() {
    await this.page.loop(
      async (signal) => {
        const began = performance.now();
        const isLarge = (this.status?.members_total ?? 0) > LARGE;
        // A large run's members are asked for less often than what has become of it.
        const whole = !isLarge || began - (this.membersMs ?? -Infinity) > ALONE_MS || this.membersMost;
        const query = whole ? (this.membersMost ? `?members=${this.membersMost}` : "") : "?members=0";
        const found = await get(runPath(this.runId, query), signal);
        this.seenMs = performance.now();
        found.seenMs = this.seenMs;
        if (whole) this.membersMs = this.seenMs;
        this.show(found, whole);
        const cost = this.seenMs - began;
        const waits = found.phase === "active" || found.phase === "closed" ? IDLE_MS : IDLE_MS / 2;
        const { over, wake } = pause(Math.max(waits, 5 * cost), signal);
        this.wake = wake;
        await over;
        return Math.max(LEAST_MS, 2 * cost);
      },
      this.signal,
      this.page.notice,
    );
  }

  show(status, hasMembers) {
    const before = this.status;
    this.status = status;
    if (hasMembers) this.members = byRank(status.members ?? []);
    this.page.fresh();
    const isLive = status.source === "coordinator";
    const owner = status.owner?.addresses?.[0];
    const host = status.coordinator?.host ?? "";
    this.page.connection(isLive ? "live" : "gone", isLive ? `live · ${host}${owner ? ` · ${owner}` : ""}` : "from the ledger");
    this.drawStatus();
    const { progress } = status;
    if (progress?.is_still && !before?.progress?.is_still) announce(`${this.runId}: ${progress.in_words}`);
    if (before && before.phase !== status.phase) announce(`${this.runId} is ${phaseWord(status)}. ${status.reason ?? ""}`);
  }

  drawStatus() {
    this.drawHead();
    this.drawWhy();
    this.drawActions();
    this.drawHistory();
    this.drawMembers();
  }

  drawHead() {
    const run = this.status;
    const parts = [
      roundNow(run),
      run.phase === "active" && !run.progress?.is_still ? run.progress?.in_words : null,
      `${run.attached === null ? "?" : whole(run.attached)} attached`,
      count(run.restart_count, "restart"),
      run.term ? `term ${run.term}` : null,
      run.settings ? `needs ${sizeOf(run.settings.min_nodes, run.settings.max_nodes)}` : null,
    ];
    const seconds = phaseSeconds(run);
    const since = seconds === null ? "" : `for ${counting(seconds)}`;
    const text = ` ${since ? `${since} · ` : ""}${parts.filter(Boolean).join(" · ")}`;
    const key = `${phaseWord(run)}${text}`;
    if (this.headKey === key) return;
    this.headKey = key;
    fill(this.facts, chip(run), text);
  }

  drawWhy() {
    const run = this.status;
    const seconds = phaseSeconds(run);
    let title = "";
    let text = run.reason ?? "";
    if (run.phase === "closed") title = "How it ended";
    else if (run.source === "ledger") title = "From the ledger";
    else if (run.phase === "suspended") title = "Why it is suspended";
    else if (run.phase === "active") text = [this.progress(), this.troubled()].filter(Boolean).join(" ");
    else title = seconds === null ? "Why it waits" : `Why it has waited for ${counting(seconds)}`;
    if (run.phase === "active" && text) title = "Look at";
    const tone = run.phase === "active" ? "warn" : attention(run).tone;
    const lines = run.closed?.cause?.failure?.last_lines ?? run.closed?.failure?.last_lines ?? [];
    const key = JSON.stringify([title, text, tone, lines.length]);
    if (this.whyKey === key) return;
    this.whyKey = key;
    this.why.dataset.tone = tone;
    this.why.hidden = !text && !title;
    fill(this.why, h("h2", {}, title), h("p", {}, text), lines.length ? h("pre", { tabindex: "0" }, lines.join("\n")) : null);
  }

  /** Whether nobody advances in an active run, and who stands behind. */
  progress() {
    const { progress, behind, behind_total: total } = this.status;
    const parts = progress?.is_still ? [sentence(progress.in_words)] : [];
    if (behind?.length) parts.push(`${some(behind, total, 3)} ${total === 1 ? "stands" : "stand"} behind the others.`);
    return parts.join(" ");
  }

  /** Members of an active run that cannot be heard. */
  troubled() {
    const bad = this.members.filter((each) => each.link && each.link !== "connected");
    if (!bad.length) return "";
    const said = bad.slice(0, 3).map((each) => `${each.name} (${this.heard(each)})`);
    return `Not heard: ${some(said, bad.length, 3)}. The round goes on.`;
  }

  drawActions() {
    const run = this.status;
    const whyNot = run.phase === "closed" ? "the run has ended" : this.page.whyNot("to change a run");
    const key = `${whyNot} ${Boolean(run.settings)}`;
    if (this.actionsKey === key) return;
    this.actionsKey = key;
    const close = h(
      "button",
      { type: "button", class: "danger", disabled: whyNot !== "", "aria-describedby": whyNot ? "why-not" : null, onclick: () => confirmAction("close", this.runId) },
      "Close run",
    );
    const scale = h(
      "button",
      { type: "button", disabled: whyNot !== "" || !run.settings, onclick: () => confirmAction("scale", this.runId, { settings: this.status.settings }) },
      "Change size",
    );
    fill(this.actions, h("div", { class: "buttons" }, scale, close), whyNot ? h("span", { class: "help", id: "why-not" }, whyNot) : null);
  }

  drawMembers() {
    if (!this.status) return;
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (each) => words.every((word) => textOf(each).includes(word));
    const shown = words.length ? this.members.filter(fits) : this.members;
    const total = this.status.members_total ?? this.members.length;
    const bad = this.members.filter((each) => each.link && each.link !== "connected").length;
    const some_ = total > this.members.length ? `${whole(this.members.length)} of ${count(total, "member")}` : count(total, "member");
    say(this.memberCount, `${some_}${bad ? `, ${bad} not heard` : ""}`);
    this.more.hidden = total <= this.members.length || this.status.source !== "coordinator";
    this.memberTable.table.classList.toggle("without-progress", !this.status.progress);
    this.memberTable.set(shown);
    this.drawOrders();
  }

  /** What operators have ordered, and who; and which nodes leave or stay out, until when and why. */
  drawOrders() {
    const { scaled, evicted } = this.status;
    const orders = (evicted ?? []).map((each) => ({ node: each.node, text: `${each.node} was evicted by ${each.by}${because(each)}` }));
    const leaving = this.members.filter((each) => this.leaving(each));
    for (const each of leaving.slice(0, NAMED)) orders.push({ text: `${each.name}: ${this.leaving(each)}` });
    if (leaving.length > NAMED) orders.push({ text: `${count(leaving.length - NAMED, "more node")} that drain or stay out: see their state` });
    if (scaled) orders.unshift({ text: `${sizeOf(scaled.min_nodes, scaled.max_nodes)}, by ${scaled.by}${because(scaled)}` });
    const mayAct = this.mayAct();
    const key = [mayAct, ...orders.map((each) => each.text)].join("\n");
    if (this.ordersKey === key) return;
    this.ordersKey = key;
    fill(this.orders, orders.map(({ node, text }) => h("li", {}, text, node && mayAct ? [" ", this.nodeButton("admit", "Admit", node)] : null)));
  }

  loadAll() {
    this.membersMost = this.status.members_total + 1000;
    this.wake();
  }

  // -- the events ---------------------------------------------------------------------------------

  async followEvents() {
    const backoff = new Backoff(250, 10000);
    let isWhole = false;
    while (!this.signal.aborted) {
      try {
        await visible(this.signal);
        if (!isWhole) isWhole = await this.readPages();
        await this.readStream(() => backoff.reset());
        await pause(backoff.next(null), this.signal).over;
      } catch (error) {
        if (this.signal.aborted) return;
        // The loop of the status says what is wrong. Without a coordinator the ledger has pages.
        if (error instanceof ApiError && error.status === 401) return;
        isWhole = false;
        await pause(backoff.next(error), this.signal).over;
      }
    }
  }

  async readPages() {
    for (;;) {
      const since = this.history.lastId;
      const found = await get(runPath(this.runId, `/events?limit=1000${since ? `&since=${since}` : ""}`), this.signal);
      if (found.missing) this.history.missed(found.missing);
      // A browser must not be busy for long: it could not answer to keys.
      for (let from = 0; from < found.events.length; from += EVENTS_AT_ONCE) {
        this.history.take(found.events.slice(from, from + EVENTS_AT_ONCE));
        await nextTask();
      }
      this.drawEvents();
      this.drawHistory();
      say(this.eventNote, found.problem ?? "");
      if (!found.more) return found.source === "coordinator";
    }
  }

  /** Follow the stream until it ends, or nobody looks at this tab. */
  async readStream(isGood) {
    if (this.status?.source === "ledger") throw new ApiError(503, "no coordinator");
    const hidden = new AbortController();
    const hide = () => document.hidden && hidden.abort();
    document.addEventListener("visibilitychange", hide);
    const until = AbortSignal.any([this.signal, hidden.signal]);
    try {
      await stream(runPath(this.runId, "/events"), this.history.lastId, (messages) => (isGood(), this.received(messages)), until);
    } catch (error) {
      if (!hidden.signal.aborted || this.signal.aborted) throw error;
    } finally {
      document.removeEventListener("visibilitychange", hide);
    }
  }

  received(messages) {
    const events = [];
    for (const { kind, data } of messages) {
      if (kind === "missing") this.history.missed(data.count ?? 0);
      else if (kind !== "end") events.push(data);
    }
    const fresh = this.take(events);
    for (const event of fresh) if (IMPORTANT.has(event.kind)) announce(event.text);
    this.wake();
  }

  take(events) {
    const fresh = this.history.take(events);
    if (!fresh.length) return fresh;
    if (this.history.wasChanged) this.drawEvents();
    else this.prepend(fresh);
    this.drawHistory();
    return fresh;
  }

  /** New events, above the others. The last few are elements; a button shows more. */
  prepend(events) {
    const shown = events.filter((each) => this.isShown(each)).slice(-this.eventsShown);
    const parts = document.createDocumentFragment();
    for (const event of shown.reverse()) parts.append(eventRow(event));
    this.events.prepend(parts);
    while (this.events.childElementCount > this.eventsShown) this.events.lastChild.remove();
    this.earlier.hidden = this.history.events.length <= this.eventsShown;
  }

  isShown(event) {
    return !this.importantOnly || IMPORTANT.has(event.kind);
  }

  filterEvents() {
    this.importantOnly = this.important.checked;
    this.drawEvents();
  }

  showEarlier() {
    this.eventsShown += 200;
    this.drawEvents();
  }

  drawEvents() {
    fill(this.events);
    this.prepend(this.history.events);
  }

  // -- rounds -------------------------------------------------------------------------------------

  /** Now, on the axis of the history: by the clock of the coordinator, not by this machine's. */
  now() {
    const { status, history } = this;
    if (history.closed) return Math.max(history.closed.t, history.end ?? 0);
    if (!status) return history.end ?? 0;
    return Math.max(history.end ?? 0, status.shown_at + history.skew + (nowMs() - this.seenMs) / 1000);
  }

  drawHistory() {
    inFrame(this.drawing);
  }

  drawRounds() {
    const rounds = this.history.allRounds(this.status?.rounds);
    this.list = rounds;
    if (this.follows && rounds.length) this.selected = worthALook(rounds);
    this.drawTimeline();
    this.rounds.set([...rounds].reverse());
    this.drawDetail();
  }

  drawTimeline() {
    const { history } = this;
    const starts = [history.start, ...(this.list ?? []).map((each) => each.since ?? each.formed)].filter((each) => each !== null && each !== undefined);
    if (!starts.length) return;
    this.timeline.selected = this.selected;
    this.timeline.set({
      rounds: this.list ?? [],
      rows: this.rowsOf(),
      gaps: history.gaps,
      terms: history.terms,
      suspensions: history.suspensions,
      start: Math.min(...starts),
      now: this.now(),
    });
    say(this.timeline.note, this.timelineNote());
  }

  timelineNote() {
    const parts = [];
    const total = this.status?.members_total ?? 0;
    if (total > 100) parts.push("Of more than 100 nodes, events name eight at most: an empty row is not recorded.");
    if (this.history.terms.length > 1) parts.push("A dashed line: another coordinator, with another clock.");
    if (this.history.dropped) parts.push(`${count(this.history.dropped, "event")} not kept.`);
    return parts.join(" ");
  }

  /** A row for each member by rank, then for those that are gone, the newest first. */
  rowsOf() {
    const { tracks } = this.history;
    const rows = [];
    const seen = new Set();
    const current = this.list?.at(-1);
    for (const member of this.members) {
      seen.add(member.name);
      const track = tracks.get(member.name);
      let segments = track?.segments ?? [];
      if (member.state === "active" && current && current.ended === null && current.formed !== null && track?.state !== "active") {
        segments = [...segments, { kind: "active", from: current.formed, to: null }];
      }
      rows.push({ name: member.name, rank: member.node_rank, segments, marks: track?.marks ?? [], unheard: track?.unheard ?? [], isGone: false });
    }
    const others = [...tracks.values()].filter((each) => !seen.has(each.name)).sort((a, b) => b.last - a.last);
    for (const each of others) rows.push({ name: each.name, rank: null, segments: each.segments, marks: each.marks, unheard: each.unheard, isGone: each.state === "" });
    return rows;
  }

  select(number) {
    this.selected = number;
    this.follows = false;
    this.timeline.choose(number);
    this.rounds.set(this.rounds.rows);
    this.rounds.reveal(number);
    this.drawDetail();
  }

  roundKey(event, number) {
    const by = { ArrowDown: -1, ArrowUp: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const numbers = this.list.map((each) => each.number);
    const next = numbers[numbers.indexOf(number) + by];
    if (next === undefined) return;
    this.select(next);
    requestAnimationFrame(() => requestAnimationFrame(() => this.rounds.shown.get(next)?.tr.querySelector("button")?.focus()));
  }

  drawDetail() {
    const round = this.list?.find((each) => each.number === this.selected);
    const key = round ? JSON.stringify([round.number, round.ended, round.verdict?.id, round.formed, round.names.length, round.stacks.length]) : "";
    if (this.detailKey === key) return;
    this.detailKey = key;
    fill(this.detail, round ? this.detailOf(round) : null);
  }

  detailOf(round) {
    const { phases } = round;
    const steps = [
      [phases.ready_s, "until the last node was ready"],
      [phases.forming_s, "of last call and pauses"],
      [phases.writing_s, "to write it to the ledger"],
    ].filter(([seconds]) => seconds !== undefined);
    const took = steps.map(([seconds, what]) => `${duration(seconds)} ${what}`).join(", ");
    const lines = linesOf(round);
    const row = (title, content) => (content ? [h("dt", {}, title), h("dd", {}, content)] : null);
    const formed = round.formed === null ? "not known when" : `${day(round.formed)}, ${count(round.nodes, "node")}`;
    const gathered = round.gatheringS === null ? took : `${duration(round.gatheringS)}${took ? `: ${took}` : ""}`;
    const cause = round.verdict?.detail ?? "";
    const title = round.cause === "hang" ? "The stack of the worker that keeps the others waiting" : "Its last lines";
    return [
      h("h3", {}, `Round ${round.number}`),
      h(
        "dl",
        {},
        row("formed", formed),
        row("gathered in", gathered),
        row("waited", waitedFor(round)),
        row("members", round.names.length ? some(round.names, round.nodes ?? round.names.length, 16) : ""),
        row("lasted", round.ended === null ? "" : this.lasted(round)),
        row("ended", round.ended === null ? "not yet: it is active" : `${clock(round.ended, true)}: ${round.reason || "not known why"}`),
        row("first cause", cause && cause !== round.reason ? cause : ""),
        row("also failed", round.failures.length > 1 ? some(round.failures.map((each) => each.node), round.failures.length) : ""),
      ),
      stacksOf(round),
      lines.length ? [h("h4", {}, title), h("pre", { tabindex: "0", "aria-label": "Last lines of the worker" }, lines.join("\n"))] : null,
    ];
  }

  // -- coordinators -------------------------------------------------------------------------------

  async followCoordinators() {
    const backoff = new Backoff(2000, 30000);
    while (!this.signal.aborted) {
      let ms = 2000;
      try {
        await visible(this.signal);
        this.drawCoordinators(await get("api/v1/coordinators", this.signal));
        backoff.reset();
      } catch (error) {
        if (this.signal.aborted || error.status === 401) return;
        ms = backoff.next(error);
      }
      await pause(ms, this.signal).over;
    }
  }

  drawCoordinators({ coordinators, problem }) {
    const run = this.status;
    if (!coordinators.length) {
      const it = run?.coordinator;
      fill(this.coordinators, h("p", {}, problem ?? `${it ? `${it.host}${it.node ? `, in node ${it.node}` : ""}, ${it.software}. ` : ""}Without a ledger there is one coordinator, and the run ends with it.`));
      return;
    }
    const rows = coordinators.map((each) => {
      const owns = run?.owner?.process === each.process;
      const late = each.unchanged_s > each.ttl_s;
      return h(
        "tr",
        { class: owns ? "selected" : "" },
        h("th", { scope: "row" }, each.process, each.is_own ? h("span", { class: "help" }, " this page") : null),
        h("td", {}, each.addresses.join(", ")),
        h("td", {}, owns ? `owner, term ${run.term}` : each.only_run ? `only ${each.only_run}` : "replica"),
        h("td", { class: late ? "bad" : "" }, late ? `not renewed for ${counting(each.unchanged_s)}` : `renewed ${counting(each.unchanged_s)} ago`, ` (limit ${duration(each.ttl_s)})`),
        h("td", {}, each.node ? `in node ${each.node}` : "serve"),
      );
    });
    const heads = ["Coordinator", "Address", "This run", "Lease", "Kind"].map((each) => h("th", { scope: "col" }, each));
    fill(
      this.coordinators,
      problem ? h("p", { class: "bad" }, problem) : null,
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Coordinators" }, h("table", {}, h("caption", { class: "unseen" }, "Coordinators of the ledger"), h("thead", {}, h("tr", {}, heads)), h("tbody", {}, rows))),
    );
  }

  // -- time passes --------------------------------------------------------------------------------

  tick() {
    if (!this.status || document.hidden || this.page.isStale) return;
    this.drawHead();
    this.drawWhy();
    if (this.status.phase !== "closed") this.drawTimeline();
    this.memberTable.later();
    this.rounds.later();
  }
}

/** The round that is active now, or the one after which the run gathers or has ended. */
function roundNow(run) {
  if (!run.round) return "no round yet";
  if (hasNoRound(run)) return `after round ${run.round}`;
  return `round ${run.round}: ${count(run.nodes, "node")}, ${count(run.size, "worker")}`;
}

/** Where the workers stood when the round ended as a hang: equal stacks once. */
function stacksOf(round) {
  if (!round.stacks.length) return null;
  const item = (each) => {
    const lines = each.last_lines ?? [];
    if (!lines.length) return h("li", {}, each.detail);
    return h("li", {}, h("details", {}, h("summary", {}, each.detail), h("pre", { tabindex: "0" }, lines.join("\n"))));
  };
  return [h("h4", {}, "Where its workers stood"), h("ul", { class: "stacks" }, round.stacks.map(item))];
}

/** How far the workers of a member are; "" if nothing is known. */
function stepOf(member) {
  const it = member.progress;
  if (!it) return "";
  const step = it.step === null ? "–" : whole(it.step);
  return it.is_behind ? `${step}, ${whole(it.steps_behind)} behind` : step;
}

function sentence(text) {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
}

function because(order) {
  return order.reason ? `: ${order.reason}` : "";
}

function byRank(members) {
  return [...members].sort((a, b) => (a.node_rank ?? Infinity) - (b.node_rank ?? Infinity) || 0);
}

function textOf(member) {
  const labels = Object.entries(member.labels ?? {}).map(([key, value]) => `${key}=${value}`).join(" ");
  return `${member.name} ${member.host} ${member.state} ${member.link} ${labels}`.toLowerCase();
}

/** The round to show until a person selects one: the last that broke, else the last. */
function worthALook(rounds) {
  return (rounds.findLast((each) => each.ended !== null) ?? rounds.at(-1)).number;
}

function eventRow(event) {
  const lines = event.hasNewLines ? event.last_lines : [];
  return h(
    "li",
    { class: IMPORTANT.has(event.kind) ? "important" : "", "data-kind": event.kind, "data-cause": event.cause, "data-id": event.id },
    h("time", { datetime: new Date(event.at * 1000).toISOString(), title: `${day(event.at)} by the clock of ${event.on}; event ${event.id}` }, clock(event.at, true)),
    h("span", { class: "round" }, event.round ? `r${event.round}` : ""),
    h("span", { class: "text" }, event.text, lines.length ? h("details", {}, h("summary", {}, count(lines.length, "last line")), h("pre", { tabindex: "0" }, lines.join("\n"))) : null),
  );
}
