// Makes elements. Every text from outside (run ids, node ids, reasons, lines of logs) becomes a text
// node. Nothing here makes markup of a text.

/**
 * An element with attributes and children. A child is an element, a text, or null for none.
 * Of the attributes, `on…` names add a listener, `class` and `data-…` are as in HTML, true and false
 * set or leave out an attribute.
 */
export function h(tag, attributes = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) found.addEventListener(name.slice(2), value);
    else if (value === true) found.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) found.setAttribute(name, value);
  }
  add(found, children);
  return found;
}

function add(parent, children) {
  for (const each of children.flat()) {
    if (each === null || each === undefined || each === false) continue;
    parent.append(each instanceof Node ? each : document.createTextNode(String(each)));
  }
}

/** Replace what is in an element. */
export function fill(parent, ...children) {
  parent.replaceChildren();
  add(parent, children);
}

/** Set the text of an element, if it has changed: a screen reader then does not read it again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

let waiting = [];
let timer = null;

/** Tell a screen reader. What comes within two seconds is told together. */
export function announce(text) {
  waiting.push(text);
  timer ??= setTimeout(() => {
    say(document.getElementById("announcer"), waiting.slice(-4).join(". "));
    waiting = [];
    timer = null;
  }, 2000);
}
