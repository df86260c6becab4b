// Asks before anything is done to a run. The dialog names the run and the node.

import { ApiError, post, runPath } from "./api.js";
import { announce, fill, h, say } from "./dom.js";

const ACTIONS = {
  close: {
    title: () => "Close this run?",
    about: (run) => [`Run `, h("strong", {}, run), ` ends on all its nodes now. No further round is formed. This cannot be undone.`],
    button: (run) => `Close ${run}`,
    done: (run) => `${run} is closed`,
  },
  drain: {
    title: () => "Drain this node?",
    about: (run, node) => ["Node ", h("strong", {}, node), " of run ", h("strong", {}, run), " stops its workers and leaves. The others form a new round without it."],
    button: (run, node) => `Drain ${node}`,
    done: (run, node) => `${node} is asked to leave`,
  },
  evict: {
    title: () => "Evict this node?",
    about: (run, node) => ["Node ", h("strong", {}, node), " is removed from run ", h("strong", {}, run), " at once, whether or not it answers. Use this for a node that hangs."],
    button: (run, node) => `Evict ${node}`,
    done: (run, node) => `${node} is removed`,
  },
};

/** Ask, and do it if the person confirms. `action`: close, drain or evict. */
export function confirmAction(action, runId, node) {
  const { title, about, button, done } = ACTIONS[action];
  const reason = h("input", { id: "reason", maxlength: "200", autocomplete: "off" });
  const said = h("p", { class: "bad", role: "alert" });
  const confirm = h("button", { type: "submit", class: "danger" }, button(runId, node));
  const cancel = h("button", { type: "button", autofocus: true, onclick: () => dialog.close() }, "Cancel");
  const form = h(
    "form",
    { method: "dialog", onsubmit: submit },
    h("h2", { id: "dialog-title" }, title()),
    h("p", {}, ...about(runId, node)),
    h("label", { for: "reason" }, "Reason, for the others (may be empty)"),
    reason,
    said,
    h("div", { class: "buttons" }, cancel, confirm),
  );
  const dialog = h("dialog", { "aria-labelledby": "dialog-title", onclose: () => dialog.remove() }, form);
  document.body.append(dialog);
  dialog.showModal();

  async function submit(event) {
    event.preventDefault();
    confirm.disabled = true;
    say(said, "");
    try {
      const body = node === undefined ? { reason: reason.value } : { node, reason: reason.value };
      await post(runPath(runId, `/${action}`), body);
      announce(done(runId, node));
      dialog.close();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      fill(said, error.message, error.hint ? ` (${error.hint})` : "");
    } finally {
      confirm.disabled = false;
    }
  }
}
