// Begins the page: which view is shown, what the top line says, and who is signed in.

import { ApiError, Backoff, get, pause, session, visible } from "./api.js";
import { announce, fill, h, nextTask, say } from "./dom.js";
import { showRun } from "./run.js";
import { showRuns } from "./runs.js";
import { askForToken } from "./signin.js";
import { clock, counting, holdClock } from "./text.js";

const main = document.getElementById("main");
const link = document.getElementById("link");
const signout = document.getElementById("signout");
let view = new AbortController();
let asking = null;

/** What the views use of the page around them. */
const page = {
  main,
  me: null,
  seenMs: null, // when the last answer came
  isStale: false,
  onFreshness: () => {}, // tells the view that it is stale now, or is no longer

  /** The state of the connection, in the top line. */
  connection(state, text) {
    link.dataset.state = state;
    say(link, text);
  },

  /** What the view shows is from now. */
  fresh() {
    page.seenMs = performance.now();
    page.seenAt = Date.now() / 1000;
    page.body.hidden = false;
    if (page.isStale) page.age(false);
    fill(page.notice);
  },

  /** Nothing new comes: what is shown is dimmed, and counts no further; or it is up to date again. */
  age(isStale) {
    page.isStale = isStale;
    holdClock(isStale ? page.seenMs : null);
    page.body.toggleAttribute("data-stale", isStale);
    page.onFreshness();
  },

  /**
   * Do `work` again and again until the view ends. `work` returns after how many milliseconds to go
   * on. If it fails, the page says why, and tries again after a longer and longer pause.
   */
  async loop(work, signal, notice) {
    const backoff = new Backoff();
    while (!signal.aborted) {
      try {
        await visible(signal);
        const ms = await work(signal);
        backoff.reset();
        fill(notice);
        await pause(ms, signal).over;
      } catch (error) {
        if (signal.aborted) return;
        if (!(error instanceof ApiError)) throw error;
        if (isRefusedLogin(error)) await signIn(error);
        else await tryAgain(error, backoff, signal, notice);
      }
    }
  },

  /** Why this person may not do this to the run; "" if they may. */
  whyNot(action) {
    return page.isStale ? "no connection to the coordinator" : whyNot(page.me, action);
  },
};

/** 401; or 429 after many of them, which has the fingerprint of the coordinator's token, too. */
function isRefusedLogin({ status, body }) {
  return status === 401 || (status === 429 && body.fingerprint !== undefined);
}

function whyNot(me, action) {
  if (!Array.isArray(me?.rights) || me.rights.includes("act")) return "";
  return `${action}, a token needs the role operator; yours has ${me.roles.join(" and ") || "no role"}`;
}

async function tryAgain(error, backoff, signal, notice) {
  const isUnknown = error.status === 404 && Array.isArray(error.body.nearest);
  const state = error.status ? `error ${error.status}` : "no connection";
  page.connection(isUnknown ? "asking" : "gone", isUnknown ? "no such run" : state);
  if (page.seenMs !== null) page.age(true);
  else page.body.hidden = isUnknown; // It has nothing to show.
  const until = performance.now() + backoff.next(error);
  const wait = pause(until - performance.now(), signal);
  const when = h("span", { class: "when" });
  const hint = error.hint ? h("span", {}, ` Hint: ${error.hint}.`) : null;
  fill(
    notice,
    h(
      "div",
      { class: "notice", role: "alert" },
      h("strong", {}, capital(error.message)),
      isUnknown ? h("span", {}, nearestRuns(error.body.nearest)) : hint,
      page.isStale ? h("span", {}, ` What is shown is from ${clock(page.seenAt)}.`) : null,
      h("span", { class: "again" }, when, h("button", { type: "button", onclick: wait.wake }, "Try now")),
    ),
  );
  const tick = () => say(when, `Next try in ${counting(Math.max(0, (until - performance.now()) / 1000))}. `);
  tick();
  const ticking = setInterval(tick, 1000);
  await wait.over;
  clearInterval(ticking);
}

function nearestRuns(names) {
  if (!names.length) return " It may have ended long ago, or its first node has not attached yet.";
  const links = names.map((name) => h("a", { href: `#/runs/${encodeURIComponent(name)}` }, name));
  return [" Did you mean ", links.map((link, index) => [index ? " or " : null, link]), "?"];
}

function capital(text) {
  return text.slice(0, 1).toUpperCase() + text.slice(1) + (text.endsWith(".") ? "" : ".");
}

/** Show the form for the token, once for all that wait for it; then begin the view anew. */
async function signIn(error) {
  asking ??= (async () => {
    view.abort();
    page.connection("asking", "not signed in");
    const wasWrong = session.token !== "";
    session.token = "";
    await askForToken(main, error, wasWrong);
    asking = null;
    show();
  })();
  await asking;
}

async function whoAmI(signal) {
  try {
    page.me = await get("api/v1/me", signal);
  } catch (error) {
    if (!(error instanceof ApiError) || error.status !== 404) throw error;
    page.me = null; // A coordinator of an older release does not say.
  }
  signout.hidden = session.token === "";
  say(document.getElementById("who"), signout.hidden ? "" : whoText(page.me));
}

/** Ask who this is, and then show the view: without a token, only one request is refused. */
async function begun(begin, body, signal, runId) {
  const once = new AbortController();
  const ask = async (within) => {
    await whoAmI(within);
    once.abort();
    return 0;
  };
  await page.loop(ask, AbortSignal.any([signal, once.signal]), page.notice);
  if (!signal.aborted) await begin(page, body, signal, runId);
}

/** Whose token this is, in few words. */
function whoText(me) {
  if (!me) return "";
  const roles = me.roles.length === 4 ? "all roles" : me.roles.join(", ");
  return me.runs.length ? `${roles} for ${me.runs.join(", ")}` : roles;
}

function show() {
  if (asking) return;
  view.abort();
  view = new AbortController();
  const signal = view.signal;
  const place = location.hash.match(/^#\/runs\/(.+)$/);
  const notice = h("div", { class: "notices" });
  const body = h("div", { class: "view" });
  fill(main, notice, body);
  holdClock(null);
  Object.assign(page, { notice, body, seenMs: null, isStale: false, onFreshness: () => {} });
  let runId = null;
  try {
    runId = place ? decodeURIComponent(place[1]) : null;
  } catch {
    location.hash = "#/";
  }
  crumbs(runId);
  const begin = runId === null ? showRuns : showRun;
  page.connection("asking", "connecting");
  const whole = begun(begin, body, signal, runId);
  whole.catch((error) => {
    if (signal.aborted) return;
    fill(notice, h("div", { class: "notice", role: "alert" }, `This page has a fault: ${error}. Load it again.`));
    throw error;
  });
}

function crumbs(runId) {
  document.title = runId === null ? "Runs · Rallypoint" : `${runId} · Rallypoint`;
  const all = h("a", { href: "#/", "aria-current": runId === null ? "page" : null }, "Runs");
  fill(
    document.getElementById("crumbs"),
    all,
    runId === null ? null : [h("span", { "aria-hidden": "true" }, "›"), h("span", { "aria-current": "page" }, runId)],
  );
}

signout.addEventListener("click", () => {
  session.token = "";
  announce("signed out");
  location.reload();
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener("hashchange", show);
nextTask().then(show);
