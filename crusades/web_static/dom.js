// Elements without markup strings: every text becomes a text node, so nothing a stranger wrote is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "width%") node.style.width = `${Math.max(0, Math.min(100, value))}%`;
    else if (name === "left%") node.style.left = `${Math.max(0, Math.min(100, value))}%`;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false && child !== ""));
  return node;
}

export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
export const byId = (id) => document.getElementById(id);

// Words in which `backticks` mark code.
export const marked = (text) => text.split("`").map((part, i, all) => (i % 2 && i < all.length - 1 ? h("code", null, part) : (i % 2 ? "`" : "") + part));

// Replace what `id` shows, keeping the focus where it was: lists are redrawn whole, and a keyboard user must not be thrown out.
export function show(id, ...children) {
  const node = typeof id === "string" ? byId(id) : id;
  const key = node.contains(document.activeElement) ? document.activeElement.dataset?.key : null;
  node.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false && child !== ""));
  if (key) node.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}
