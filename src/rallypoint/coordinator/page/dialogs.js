// Asks before anything is done to a run. The dialog names the run and the node.

import { ApiError, post, runPath } from "./api.js";
import { announce, fill, h, say } from "./dom.js";

const strong = (text) => h("strong", {}, text);

const ACTIONS = {
  close: {
    title: "Close this run?",
    about: (run) => ["Run ", strong(run), " ends on all its nodes now. No further round is formed. This cannot be undone."],
    button: (run) => `Close ${run}`,
    done: (run) => `${run} is closed`,
  },
  scale: {
    title: "Change the size of this run?",
    about: (run) => ["Run ", strong(run), " then has so many nodes, whatever its nodes ask for. A round with more nodes ends."],
    button: (run) => `Change ${run}`,
    done: (run) => `the size of ${run} is changed`,
  },
  drain: {
    title: "Drain this node?",
    about: (run, node) => [
      "Node ", strong(node), " of run ", strong(run),
      " is asked to leave: its workers have time to save their state, and the others form a new round. It may join again.",
    ],
    button: (run, node) => `Drain ${node}`,
    done: (run, node) => `${node} is asked to leave`,
  },
  evict: {
    title: "Evict this node?",
    about: (run, node) => [
      "Node ", strong(node), " is taken out of run ", strong(run),
      " at once, whether or not it answers. No node of this name can join this run again, until it is admitted.",
    ],
    button: (run, node) => `Evict ${node}`,
    done: (run, node) => `${node} is taken out`,
  },
  admit: {
    title: "Admit this node again?",
    about: (run, node) => ["Node ", strong(node), " was evicted. It may then join run ", strong(run), " again, when it is started again."],
    button: (run, node) => `Admit ${node}`,
    done: (run, node) => `${node} may join again`,
  },
};

/**
 * Ask, and do it if the person confirms. `action`: close, scale, drain, evict or admit. `node`: of the
 * last three. `settings`: how many nodes the run has now, to scale it.
 */
export function confirmAction(action, runId, { node, settings } = {}) {
  const { title, about, button, done } = ACTIONS[action];
  const reason = h("input", { id: "reason", maxlength: "200", autocomplete: "off" });
  const said = h("p", { class: "bad", role: "alert" });
  const sizes = action === "scale" ? sizeFields(settings) : null;
  const confirm = h("button", { type: "submit", class: "danger" }, button(runId, node));
  const cancel = h("button", { type: "button", autofocus: true, onclick: () => dialog.close() }, "Cancel");
  const form = h(
    "form",
    { method: "dialog", onsubmit: submit },
    h("h2", { id: "dialog-title" }, title),
    h("p", {}, ...about(runId, node)),
    sizes && h("div", { class: "bar" }, h("label", { for: "least" }, "At least"), sizes.least, h("label", { for: "most" }, "at most"), sizes.most, "nodes"),
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
      const body = { reason: reason.value };
      if (node !== undefined) body.node = node;
      if (sizes) Object.assign(body, { min_nodes: sizes.least.valueAsNumber, max_nodes: sizes.most.valueAsNumber });
      const answer = await post(runPath(runId, `/${action}`), body);
      announce(answer.text ?? done(runId, node));
      dialog.close();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      fill(said, error.message, error.hint ? ` (${error.hint})` : "");
    } finally {
      confirm.disabled = false;
    }
  }
}

function sizeFields(settings) {
  const field = (id, value) => h("input", { type: "number", id, min: "1", max: "1000000", required: true, value });
  const least = field("least", settings?.min_nodes ?? 1);
  const most = field("most", settings?.max_nodes ?? 1);
  const check = () => {
    const fits = !(least.valueAsNumber > most.valueAsNumber);
    most.setCustomValidity(fits ? "" : `The most nodes must not be fewer than the least: ${least.value}.`);
  };
  for (const each of [least, most]) each.addEventListener("input", check);
  return { least, most };
}
