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
  for (const each of children.flat(Infinity)) {
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

const FRAME_MS = 4;
const drawings = new Set();
let frame = null;

/**
 * Call this function before the browser draws next; once, however often it is asked for. What takes
 * long together is spread over several frames.
 */
export function inFrame(draw) {
  drawings.add(draw);
  frame ??= requestAnimationFrame(drawSome);
}

function drawSome() {
  const began = performance.now();
  frame = null;
  for (const draw of drawings) {
    drawings.delete(draw);
    draw();
    if (performance.now() - began > FRAME_MS) break;
  }
  if (drawings.size) frame ??= requestAnimationFrame(drawSome);
}

/** Let the browser do what else waits: keys, drawing. */
export function nextTask() {
  return new Promise((resolve) => setTimeout(resolve));
}
