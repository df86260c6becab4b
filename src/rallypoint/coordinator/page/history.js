// The history of a run, made from its events: its rounds, what each node did when, and where
// something is missing. No document, no time, no requests: events in, values out.
//
// Times here are seconds since 1970 by the clock of the run's first coordinator. Within a term,
// differences are exact, because they are by the coordinator's monotonic clock. Clocks of two hosts
// are not comparable; a term whose clock is behind begins where the term before has ended.

const EVENTS_MAX = 4000;
const KEPT = 2500;
const SUMMARISED_ABOVE = 100; // Of more nodes, an event names eight at most.
const FROM_HEAD = 1_000_000_000; // The number of an event that is read from the head of the run.

/** What the events of these kinds make of a node. */
const STATE_OF = {
  attached: "starting",
  ready: "waiting",
  standby: "standby",
  done: "done",
  departing: "stopping",
};
const GONE = new Set(["lost", "left", "superseded"]);
const UNHEARD = new Set(["suspect", "disconnected"]);
const HEARD = new Set(["heard", "resumed"]);
export const IMPORTANT = new Set([
  "began", "took_over", "handed_over", "deposed", "gave_up", "suspended", "restored", "refused", "suspect",
  "witnessed", "disconnected", "guarded", "worker_failed", "lost", "superseded", "held_back", "waited", "formed", "not_begun",
  "let_in", "broken", "cause", "closed", "dropped", "left", "departing", "missing",
  "drain_asked", "evicted", "readmitted", "scaled", "cooling", "let_back_in",
]);

/** What one node did: `segments` with a kind and times, `marks` at one time, `unheard` spans. */
class Track {
  constructor(name) {
    this.name = name;
    this.segments = [];
    this.marks = [];
    this.unheard = [];
    this.last = 0;
  }

  get state() {
    const last = this.segments[this.segments.length - 1];
    return last && last.to === null ? last.kind : "";
  }

  become(kind, t) {
    if (this.state === kind) return;
    this.end(t);
    this.segments.push({ kind, from: t, to: null });
  }

  end(t) {
    const last = this.segments[this.segments.length - 1];
    if (last && last.to === null) last.to = t;
    this.last = t;
  }

  silent(t) {
    const last = this.unheard[this.unheard.length - 1];
    if (!last || last.to !== null) this.unheard.push({ from: t, to: null });
  }

  heard(t) {
    const last = this.unheard[this.unheard.length - 1];
    if (last && last.to === null) last.to = t;
  }
}

export class History {
  constructor() {
    this.reset();
  }

  reset() {
    this.events = [];
    this.known = new Map();
    this.begin();
  }

  begin() {
    this.rounds = new Map();
    this.tracks = new Map();
    this.gaps = [];
    this.terms = [];
    this.suspensions = [];
    this.start = null;
    this.end = null;
    this.closed = null;
    this.dropped = 0;
    this.waits = [];
    this.linesRound = null;
    this.linesSeen = new Set();
    this.isLarge = false;
  }

  get lastId() {
    const last = this.events[this.events.length - 1];
    return last ? last.id : "";
  }

  /**
   * Take events, oldest first. Returns those that are new. Some may belong before the last one: the
   * ledger has told of the run before its coordinator did. If the name of one is known for another
   * event, the coordinator was started again, and its runs were in memory: then all begins anew.
   */
  take(events) {
    const fresh = [];
    let isInOrder = true;
    for (const event of events) {
      const at = this.known.get(event.id);
      if (at === event.at) continue;
      if (at !== undefined) {
        this.reset();
        this.isAnew = true;
      }
      const last = this.events[this.events.length - 1];
      isInOrder &&= !last || isAfter(event, last);
      this.known.set(event.id, event.at);
      this.events.push(event);
      if (isInOrder) this.see(event);
      fresh.push(event);
    }
    if (!isInOrder) this.rebuild();
    else if (this.events.length > EVENTS_MAX) this.forget();
    return fresh;
  }

  /** Whether events that were taken before are gone or have another order now; asked once. */
  get wasChanged() {
    const found = this.isAnew ?? false;
    this.isAnew = false;
    return found;
  }

  /** Begin anew with the events in order. Their coordinator knows more than the head in the ledger. */
  rebuild() {
    const { dropped } = this;
    const events = this.events.filter((each) => each.seq < FROM_HEAD);
    events.sort((a, b) => a.term - b.term || a.seq - b.seq);
    this.reset();
    this.events = events;
    for (const event of events) {
      this.known.set(event.id, event.at);
      this.see(event);
    }
    this.dropped = Math.max(this.dropped, dropped);
    this.isAnew = true;
  }

  /** The stream could not keep up, or began too late: so many events are not known. */
  missed(count) {
    this.dropped += count;
    this.gaps.push({ from: this.end, to: null, text: `${count} events are not kept` });
  }

  /** A page that is open for days keeps the newest events only. */
  forget() {
    const { closed } = this;
    const events = this.events.slice(-KEPT);
    this.reset();
    this.events = events;
    for (const event of events) {
      this.known.set(event.id, event.at);
      this.see(event);
    }
    this.closed ??= closed;
    this.gaps.unshift({ from: null, to: this.start, text: "this page has dropped earlier events" });
  }

  // -- one event ----------------------------------------------------------------------------------

  see(event) {
    const t = this.timeOf(event);
    event.t = t;
    if (!event.is_late) {
      for (const gap of this.gaps) if (gap.to === null) gap.to = t;
      this.end = Math.max(this.end ?? t, t);
    }
    this.start = Math.min(this.start ?? t, t);
    this.seeLines(event);
    this.seeRun(event, t);
    if (!event.is_late) this.seeNodes(event, t);
  }

  /** Several events of a round have the last lines of one failure: they are shown with the first. */
  seeLines(event) {
    if (!event.last_lines?.length) return;
    if (event.round !== this.linesRound) this.linesSeen.clear();
    this.linesRound = event.round;
    const text = event.last_lines.join("\n");
    event.hasNewLines = !this.linesSeen.has(text);
    this.linesSeen.add(text);
  }

  timeOf(event) {
    if (event.is_late) return event.at;
    let term = this.terms[this.terms.length - 1];
    if (!term || term.term !== event.term) {
      let base = event.at - event.offset_s;
      const skew = this.end === null ? 0 : this.end - event.at;
      if (skew > 0) base += skew;
      term = { term: event.term, base, on: event.on, from: base + event.offset_s, skew: Math.max(0, skew) };
      this.terms.push(term);
    }
    return term.base + event.offset_s;
  }

  /** By how much times of the present term are moved, so that it follows the term before. */
  get skew() {
    return this.terms[this.terms.length - 1]?.skew ?? 0;
  }

  seeRun(event, t) {
    switch (event.kind) {
      case "waited":
        this.waits.push({ ...event });
        break;
      case "formed":
        this.formed(event, t);
        break;
      case "not_begun":
        this.waits = [];
        this.round(event.round, t).reason = event.text;
        this.round(event.round, t).ended = t;
        break;
      case "let_in":
        this.round(event.round, t).letIn = event;
        break;
      case "worker_failed":
        this.round(event.round, t).failures.push(event);
        break;
      case "lost":
        if (event.round && !this.round(event.round, t).ended) this.round(event.round, t).losses.push(event);
        break;
      case "stacks":
        this.round(event.round, t).stacks.push(event);
        break;
      case "broken":
        this.broken(event, t);
        break;
      case "cause":
        Object.assign(this.round(event.round, t), { verdict: event });
        break;
      case "suspended":
        this.suspensions.push({ from: t, to: null, text: event.text });
        break;
      case "restored":
      case "took_over":
        for (const each of this.suspensions) each.to ??= t;
        break;
      case "dropped":
        this.dropped += event.count;
        this.gaps.push({ from: this.before(event), to: t, text: event.text });
        break;
      case "closed":
        this.isClosed(event, t);
        break;
    }
  }

  before(event) {
    const index = this.events.indexOf(event);
    const earlier = index > 0 ? this.events[index - 1] : null;
    return earlier?.t ?? null;
  }

  round(number, t) {
    let found = this.rounds.get(number);
    if (!found) {
      found = {
        number, formed: null, since: null, ended: null, nodes: null, names: [], waits: [], losses: [], failures: [],
        phases: {}, gatheringS: null, activeS: null, cause: "", reason: "", verdict: null, letIn: null, lines: [], stacks: [], at: t,
      };
      this.rounds.set(number, found);
    }
    return found;
  }

  formed(event, t) {
    const round = this.round(event.round, t);
    const writing = event.phases?.writing_s ?? 0;
    Object.assign(round, {
      formed: t,
      since: event.seconds === null ? null : t - writing - event.seconds,
      nodes: event.count,
      names: event.nodes,
      phases: event.phases ?? {},
      gatheringS: event.seconds,
      waits: this.waits,
    });
    this.waits = [];
  }

  broken(event, t) {
    const round = this.round(event.round, t);
    if (round.formed === null && event.seconds !== null) round.formed = t - event.seconds;
    Object.assign(round, { ended: t, activeS: event.seconds, cause: event.cause, reason: event.detail, broken: event });
    if (event.last_lines?.length) round.lines = event.last_lines;
    this.waits = [];
  }

  isClosed(event, t) {
    this.closed = { t, event };
    const last = this.lastRound();
    if (last && last.ended === null) Object.assign(last, { ended: t, reason: event.detail, cause: "closed" });
    if (!event.is_late) for (const track of this.tracks.values()) track.end(t);
  }

  lastRound() {
    let found = null;
    for (const each of this.rounds.values()) if (!found || each.number > found.number) found = each;
    return found;
  }

  // -- nodes --------------------------------------------------------------------------------------

  seeNodes(event, t) {
    if (event.kind === "formed") return this.begunBy(event, t);
    if (event.kind === "broken" && event.cause === "hang") this.hung(event, t);
    if (event.kind === "broken" || event.kind === "not_begun") return this.stoppedBy(t);
    const state = STATE_OF[event.kind];
    const names = event.node ? [event.node] : event.nodes ?? [];
    const isAboutThem = state || GONE.has(event.kind) || UNHEARD.has(event.kind) || HEARD.has(event.kind);
    if (!isAboutThem && event.kind !== "worker_failed" && event.kind !== "waited" && event.kind !== "refused") return;
    for (const name of names) {
      if (event.kind === "refused") {
        this.tracks.get(name)?.marks.push({ t, kind: "refused", event });
        continue;
      }
      const track = this.track(name);
      track.last = t;
      if (state) track.become(state, t);
      if (GONE.has(event.kind)) {
        track.heard(t);
        track.end(t);
        track.marks.push({ t, kind: event.kind, event });
      } else if (UNHEARD.has(event.kind)) track.silent(event.kind === "suspect" ? t - (event.seconds ?? 0) : t);
      else if (HEARD.has(event.kind)) track.heard(t);
      else if (event.kind === "worker_failed") track.marks.push({ t, kind: "failed", event });
      else if (event.kind === "waited" && event.node) track.marks.push({ t, kind: "last", event });
    }
  }

  track(name) {
    let found = this.tracks.get(name);
    if (!found) {
      found = new Track(name);
      this.tracks.set(name, found);
    }
    return found;
  }

  /**
   * Members of a round: those that it names, and all that were ready. Who was not has `standby`. The
   * events of a large run name few nodes, so nothing is known of the others.
   */
  begunBy(event, t) {
    this.isLarge = event.count > SUMMARISED_ABOVE;
    for (const name of event.nodes ?? []) this.track(name).become("active", t);
    for (const track of this.tracks.values()) {
      if (track.state === "waiting") track.become("active", t);
      else if (this.isLarge && track.state === "starting") track.end(t);
    }
  }

  /** The nodes for whose workers the others have waited. */
  hung(event, t) {
    for (const name of event.nodes ?? []) this.track(name).marks.push({ t, kind: "hung", event });
  }

  stoppedBy(t) {
    for (const track of this.tracks.values()) {
      if (track.state === "active" && this.isLarge) track.end(t);
      else if (track.state === "active") track.become("stopping", t);
      else if (track.state === "standby") track.become("waiting", t);
    }
  }

  // -- for the views ------------------------------------------------------------------------------

  /** All rounds by number, with what only the status has of them. */
  allRounds(statusRounds = []) {
    for (const each of statusRounds ?? []) {
      const round = this.rounds.get(each.number) ?? this.round(each.number, each.formed_at);
      round.formed ??= each.formed_at;
      round.nodes ??= each.nodes;
      round.size = each.size;
      round.gatheringS ??= each.gathering_s;
      round.activeS ??= each.active_s;
      round.activeMinS = each.active_min_s;
      round.ended ??= each.ended_at;
      if (!round.reason && each.ended) round.reason = each.ended;
      if (round.cause === "" && each.change) round.cause = each.change.failure?.is_hang ? "hang" : each.change.kind;
      if (each.members && each.members.length > round.names.length) round.names = each.members;
      const lines = each.change?.failure?.last_lines;
      if (lines?.length) round.lines = lines;
    }
    return [...this.rounds.values()].filter((each) => each.number > 0).sort((a, b) => a.number - b.number);
  }
}

function isAfter(event, last) {
  return event.term > last.term || (event.term === last.term && event.seq > last.seq);
}

/** Whether a round ended because something is wrong. */
export function isTrouble(round) {
  return round.cause === "node_lost" || round.cause === "worker_failed" || round.cause === "hang";
}

/** Why a round ended, in words: the first cause if the verdict is known. */
export function whyEnded(round) {
  if (round.verdict) return round.verdict.detail;
  if (round.reason) return round.reason;
  return round.ended === null ? "" : "not known";
}

/** The last lines of the worker that failed first. */
export function linesOf(round) {
  if (round.verdict?.last_lines?.length) return round.verdict.last_lines;
  if (round.lines.length) return round.lines;
  return round.failures.find((each) => each.last_lines?.length)?.last_lines ?? [];
}

/** For whom the round waited longest, in words. */
export function waitedFor(round) {
  return round.waits.map((each) => each.text).join("; ");
}
