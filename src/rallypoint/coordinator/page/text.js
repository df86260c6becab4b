// Numbers, durations and times as text, and the words for states.

let heldMs = null;

/**
 * This browser's monotonic clock, for durations that count. It stands still while the coordinator
 * cannot be reached: nobody knows whether what is shown goes on.
 */
export function nowMs() {
  return heldMs ?? performance.now();
}

/** Let that clock stand still at a time; null: let it go on. */
export function holdClock(ms) {
  heldMs = ms;
}

/** A duration in seconds for people: three digits are enough. "" for an unknown one. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  const hours = Math.floor(seconds / 3600);
  if (hours < 48) return `${hours} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** The same in whole seconds, for a text that counts. */
export function counting(seconds) {
  if (seconds === null || seconds === undefined) return "";
  return seconds < 60 ? `${Math.floor(seconds)} s` : duration(seconds);
}

const two = (number) => String(number).padStart(2, "0");

// Intl makes a formatter for each call, which is slow for the thousands of times of a page.

/** The time of day of an instant in seconds since 1970, in the time zone of this browser. */
export function clock(at, withMilliseconds = false) {
  if (at === null || at === undefined) return "";
  const date = new Date(at * 1000);
  const text = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  return withMilliseconds ? `${text}.${String(date.getMilliseconds()).padStart(3, "0")}` : text;
}

/** The date of an instant. */
export function dateOf(at) {
  const date = new Date(at * 1000);
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
}

/** Date and time of day. */
export function day(at) {
  return at === null || at === undefined ? "" : `${dateOf(at)} ${clock(at)}`;
}

/** A pace in words, as the terminal has it: 3.1 steps/s, or 12.0 s/step if that is slower than one. */
export function pace(stepsPerS) {
  if (stepsPerS >= 1) return `${whole(stepsPerS.toFixed(stepsPerS < 100 ? 1 : 0))} steps/s`;
  return stepsPerS > 1 / 60 ? `${(1 / stepsPerS).toFixed(1)} s/step` : `${duration(1 / stepsPerS)}/step`;
}

/** A whole number with separators: 12,345. */
export function whole(number) {
  return String(number).replace(/\B(?=(\d{3})+(?!\d))/g, ",");
}

export function count(number, noun) {
  if (number === null || number === undefined) return `? ${noun}s`;
  return number === 1 ? `1 ${noun}` : `${whole(number)} ${noun}s`;
}

/** How many nodes a round may have. */
export function sizeOf(least, most) {
  return least === most ? count(least, "node") : `${whole(least)} to ${count(most, "node")}`;
}

/** Whether no round is active now, as far as the status of a run says. */
export function hasNoRound(run) {
  if (["gathering", "committing", "closed"].includes(run.phase)) return true;
  const last = run.rounds?.at(-1);
  return run.phase !== "active" && last?.number === run.round && Boolean(last?.ended);
}

/** Numbers in order in few characters: 0-3,7. */
export function spans(numbers) {
  const found = [];
  for (const each of numbers ?? []) {
    const last = found[found.length - 1];
    if (last && last[1] === each - 1) last[1] = each;
    else found.push([each, each]);
  }
  return found.map(([a, b]) => (a === b ? `${a}` : `${a}-${b}`)).join(",");
}

export function bytes(number) {
  if (number === null || number === undefined) return "";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = number;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value < 10 && unit ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** Names for people: "a, b and 3 more". */
export function some(names, total = names.length, most = 8) {
  const shown = names.slice(0, most);
  const more = Math.max(0, total - shown.length);
  if (!shown.length) return count(total, "node");
  if (more) return `${shown.join(", ")} and ${whole(more)} more`;
  if (shown.length === 1) return shown[0];
  return `${shown.slice(0, -1).join(", ")} and ${shown[shown.length - 1]}`;
}

/** How urgently a person has to look at a run, and how its phase is shown. */
export function attention(run) {
  const waits = run.phase_s ?? run.waiting?.since_s ?? 0;
  switch (run.phase) {
    case "suspended":
      return { level: 0, tone: "bad" };
    case "unreachable":
    case "unowned":
    case "unknown":
      return { level: 1, tone: "bad" };
    case "gathering":
    case "committing":
      return { level: waits >= 30 ? 2 : 3, tone: "warn" };
    case "active":
      return run.progress?.is_still ? { level: 2, tone: "warn" } : { level: 4, tone: "good" };
    case "closed":
      return run.closed?.outcome === "succeeded" ? { level: 6, tone: "done" } : { level: 5, tone: "bad" };
    default:
      return { level: 1, tone: "warn" };
  }
}

/** The word for a run's phase. A closed run shows how it ended. */
export function phaseWord(run) {
  if (run.phase !== "closed") return run.phase ?? "unknown";
  return { succeeded: "succeeded", failed: "failed", stopped: "stopped", not_enough_nodes: "too few nodes" }[
    run.closed?.outcome
  ] ?? "closed";
}
