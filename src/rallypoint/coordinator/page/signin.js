// The form for the token. The token is never in a URL: the field has no name, so no form sends it.

import { credential, get, session } from "./api.js";
import { fill, h, say } from "./dom.js";

/** Ask until a token is accepted. `error`: the refusal that led here; `wasWrong`: of a token. */
export function askForToken(main, error, wasWrong) {
  return new Promise((resolve) => {
    const field = h("input", {
      type: "password",
      id: "token",
      autocomplete: "off",
      spellcheck: "false",
      required: true,
      "aria-describedby": "token-help token-error",
    });
    const said = h("p", { class: "bad", id: "token-error", role: "alert" }, ...(wasWrong ? text(error) : []));
    const button = h("button", { type: "submit", class: "primary" }, "Sign in");
    const form = h(
      "form",
      { class: "card signin", method: "post", onsubmit: submit },
      h("h1", {}, "This coordinator needs a token"),
      h("label", { for: "token" }, "Token"),
      field,
      h(
        "p",
        { class: "help", id: "token-help" },
        "Paste the text of the token file, such as ",
        h("code", {}, "~/.rallypoint/token"),
        ". It stays in this tab, and is forgotten when the tab is closed.",
      ),
      said,
      button,
    );
    fill(main, form);
    field.focus();

    async function submit(event) {
      event.preventDefault();
      button.disabled = true;
      say(said, "");
      try {
        session.token = credential(field.value);
        await get("api/v1/runs?limit=1");
        resolve();
      } catch (problem) {
        session.token = "";
        fill(said, ...text(problem));
        field.select();
      } finally {
        button.disabled = false;
      }
    }
  });
}

function text(error) {
  const wait = error.retryS ? ` Try again in ${Math.ceil(error.retryS)} s.` : "";
  const hint = error.status === 401 || !error.hint ? "" : ` Hint: ${error.hint}.`;
  const said = `${error.message.slice(0, 1).toUpperCase()}${error.message.slice(1)}.${hint}${wait}`;
  return [said, ...compared(error.body ?? {})];
}

/** How to find out whether a file has the token of this coordinator. */
function compared({ fingerprint, origin }) {
  if (!fingerprint) return [];
  return [
    " To compare: ",
    h("code", {}, "rallypoint token show FILE"),
    " prints the fingerprint of a token file. The coordinator's own token",
    origin ? ` (${origin})` : "",
    " has ",
    h("code", {}, fingerprint),
    "; tokens with a role have others.",
  ];
}
