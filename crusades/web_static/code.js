// A stranger's source as text: numbered lines, light colouring of comments, strings and keywords, hidden characters made visible.

import { h } from "./dom.js";
import { INVISIBLE_IN_CODE } from "./format.js";

const KEYWORDS = new Set("and as assert async await break class continue def del elif else except finally for from global if import in is lambda nonlocal not or pass raise return try while with yield None True False match case".split(" "));
const TOKEN = /(#.*$)|("""|''')|([rbfuRBFU]{0,2}"(?:[^"\\]|\\.)*"|[rbfuRBFU]{0,2}'(?:[^'\\]|\\.)*')|\b([A-Za-z_]\w*)\b|\b(\d[\w.]*)\b/g;

// Direction and zero-width characters can make code read differently than it runs: shown by their number.
function visible(text) {
  const parts = [];
  let last = 0;
  for (const match of text.matchAll(INVISIBLE_IN_CODE)) {
    parts.push(text.slice(last, match.index), h("mark", { class: "hidden-char" }, `U+${match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`));
    last = match.index + match[0].length;
  }
  parts.push(text.slice(last));
  return parts;
}

function coloured(line, state) {
  if (line.length > 2000) return visible(line); // no colouring for what nobody reads: cheap whatever is thrown at it
  const parts = [];
  let at = 0;
  const put = (end, kind) => { if (end > at) { const text = visible(line.slice(at, end)); parts.push(kind ? h("span", { class: kind }, text) : text); at = end; } };
  while (at < line.length || !parts.length) {
    if (state.quote) {
      const end = line.indexOf(state.quote, at);
      if (end < 0) { put(line.length, "str"); break; }
      const stop = end + 3;
      state.quote = null;
      put(stop, "str");
      continue;
    }
    TOKEN.lastIndex = at;
    const match = TOKEN.exec(line);
    if (!match) { put(line.length); break; }
    put(match.index);
    if (match[2]) { state.quote = match[2]; const from = match.index; const end = line.indexOf(match[2], from + 3); if (end < 0) { put(line.length, "str"); break; } state.quote = null; put(end + 3, "str"); }
    else put(match.index + match[0].length, match[1] ? "com" : match[3] ? "str" : match[5] ? "lit" : KEYWORDS.has(match[4]) ? "kw" : null);
    if (at >= line.length) break;
  }
  return parts;
}

export function drawCode(text, marked) {
  const lines = text.split(/\r\n|\r|\n/);
  if (lines.at(-1) === "") lines.pop();
  const state = { quote: null };
  const long = lines.length > 5000;
  const rows = lines.map((line, i) => h("span", { class: `line${i + 1 === marked ? " marked" : ""}`, "data-line": i + 1 }, h("span", { class: "no", "aria-hidden": "true" }, String(i + 1)), h("span", { class: "text" }, long ? visible(line) : coloured(line, state), "\n")));
  return h("figure", { class: "code", id: "code-place" },
    h("figcaption", null, `train.py · ${lines.length} lines`, h("button", { class: "button small", type: "button", onclick: (e) => navigator.clipboard?.writeText(text).then(() => { e.target.textContent = "copied"; }, () => { e.target.textContent = "not allowed"; }) }, "copy")),
    h("pre", { tabindex: 0 }, h("code", null, rows)));
}
