// The MFU history: the leader's score as a step line, every scored submission as a dot.

import { h, s } from "./dom.js";
import { clock, mfu, short } from "./format.js";

const HEIGHT = 260, LEFT = 44, RIGHT = 14, TOP = 14, BOTTOM = 26;

export function ticks(low, high, wanted) {
  const rough = (high - low) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((candidate) => candidate >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

const TIME_STEPS = [5, 10, 15, 30, 60, 300, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800, 1209600, 2592000, 7776000, 31536000];
function timeTicks(low, high, wanted) {
  const step = TIME_STEPS.find((candidate) => (high - low) / candidate <= wanted) ?? TIME_STEPS.at(-1);
  const offset = new Date(1000 * low).getTimezoneOffset() * 60;
  const found = [];
  for (let at = Math.ceil((low - offset) / step) * step + offset; at <= high; at += step) found.push(at);
  return [found, step];
}
const timeLabel = (at, step) => new Date(1000 * at).toLocaleString("en-GB", step >= 86400 ? { day: "numeric", month: "short" } : { hour: "2-digit", minute: "2-digit", ...(step < 60 && { second: "2-digit" }) });

export class HistoryChart {
  constructor(host, onOpen) {
    Object.assign(this, { host, onOpen, points: [], at: -1 });
    this.tip = h("div", { class: "tip", hidden: true });
    new ResizeObserver(() => this.draw()).observe(host);
  }

  update(points) {
    const fixed = this.at >= 0 ? this.points[this.at]?.submission_id : null;
    this.points = points.filter((p) => Number.isFinite(p.score_mfu) && Number.isFinite(p.at)).sort((a, b) => a.at - b.at);
    this.at = fixed ? this.points.findIndex((p) => p.submission_id === fixed) : -1;
    this.draw();
  }

  scales(width) {
    const values = this.points.flatMap((p) => [p.score_mfu, p.leader_mfu]);
    let low = Math.min(...values), high = Math.max(...values);
    const pad = Math.max((high - low) * 0.08, Math.max(high, 1e-9) * 0.02);
    low = Math.max(0, low - pad); high += pad;
    let from = this.points[0].at, to = this.points.at(-1).at;
    if (to - from < 60) { from -= 30; to += 30; }
    const room = (to - from) * 0.02;
    from -= room; to += room;
    return {
      low, high, from, to,
      x: (at) => LEFT + ((at - from) / (to - from)) * (width - LEFT - RIGHT),
      y: (value) => TOP + (1 - (value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM),
    };
  }

  draw() {
    const width = Math.floor(this.host.clientWidth);
    if (!width) return;
    if (!this.points.length) {
      this.host.replaceChildren(h("p", { class: "empty" }, "Nothing has been scored yet. The first accepted submission starts this chart."));
      return;
    }
    const focused = this.host.contains(document.activeElement);
    this.scale = this.scales(width);
    const { x, y, low, high, from, to } = this.scale;
    const floor = HEIGHT - BOTTOM;
    const grid = ticks(low, high, 5).map((value) => [
      s("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      s("text", { class: "axis", x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, Number(value.toFixed(4)).toString()),
    ]);
    const [times, step] = timeTicks(from, to, width / 90);
    const hours = times.map((at) => s("text", { class: "axis", x: x(at), y: HEIGHT - 7, "text-anchor": "middle" }, timeLabel(at, step)));
    const line = this.points.map((p, i) => (i ? `H${x(p.at).toFixed(1)}V${y(p.leader_mfu).toFixed(1)}` : `M${x(p.at).toFixed(1)},${y(p.leader_mfu).toFixed(1)}`)).join("") + `H${width - RIGHT}`;
    const dots = this.points.map((p, i) => s("circle", { class: `mark ${p.took_lead ? "took" : "other"}`, cx: x(p.at), cy: y(p.score_mfu), r: p.took_lead ? 5 : 3.5, "data-i": i }));
    const others = dots.filter((_, i) => !this.points[i].took_lead), took = dots.filter((_, i) => this.points[i].took_lead);
    this.cursor = s("circle", { class: "cursor", r: 9, hidden: true });
    const best = this.points.reduce((a, b) => (b.leader_mfu > a.leader_mfu ? b : a));
    const svg = s("svg", {
      viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", tabindex: 0,
      "aria-label": `MFU of ${this.points.length} scored submissions. The leader has ${mfu(best.leader_mfu)} percent. Left and right arrow keys walk through them, Enter opens one.`,
      onpointermove: (e) => this.hover(e), onpointerleave: () => this.mark(-1), onclick: () => this.openMarked(),
      onkeydown: (e) => this.key(e), onblur: () => this.mark(-1),
    },
    s("defs", null, s("linearGradient", { id: "under", x1: 0, y1: 0, x2: 0, y2: 1 }, s("stop", { offset: "0", class: "under-top" }), s("stop", { offset: "1", class: "under-bottom" }))),
    ...grid.flat(), ...hours,
    s("path", { class: "under", d: `${line}V${floor}H${x(this.points[0].at).toFixed(1)}Z` }), s("path", { class: "lead", d: line }), ...others, ...took, this.cursor);
    this.host.replaceChildren(svg, this.tip, h("p", { class: "y-name", "aria-hidden": "true" }, "MFU %"));
    if (focused) svg.focus({ preventScroll: true });
    this.mark(this.at);
  }

  hover(event) {
    const box = this.host.getBoundingClientRect();
    const px = event.clientX - box.left, py = event.clientY - box.top;
    let best = -1, least = 60 ** 2;
    this.points.forEach((p, i) => {
      const distance = (this.scale.x(p.at) - px) ** 2 + ((this.scale.y(p.score_mfu) - py) ** 2) / 4;
      if (distance < least) { least = distance; best = i; }
    });
    this.mark(best);
  }

  mark(i) {
    this.at = i;
    const p = this.points[i];
    this.tip.hidden = !p;
    if (this.cursor) this.cursor.toggleAttribute("hidden", !p);
    if (!p) return;
    const px = this.scale.x(p.at), py = this.scale.y(p.score_mfu);
    this.cursor.setAttribute("cx", px);
    this.cursor.setAttribute("cy", py);
    this.tip.replaceChildren(
      h("b", null, `${mfu(p.score_mfu, 3)} % MFU`), p.took_lead ? h("span", { class: "gold" }, "took the lead") : h("span", null, `leader ${mfu(p.leader_mfu, 3)} %`),
      h("span", { class: "mono" }, short(p.hotkey)), h("span", { class: "muted" }, `${clock(p.at)} · block ${p.block}`));
    const flip = px > this.host.clientWidth - 190;
    this.tip.classList.toggle("flip", flip);
    this.tip.style.left = `${px + (flip ? -14 : 14)}px`;
    this.tip.style.top = `${Math.max(4, Math.min(py - 30, HEIGHT - 110))}px`;
  }

  openMarked() { if (this.points[this.at]) this.onOpen(this.points[this.at].submission_id); }

  key(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (move !== undefined) {
      event.preventDefault();
      const from = this.at < 0 ? (move > 0 ? -1 : this.points.length) : this.at;
      this.mark(Math.max(0, Math.min(this.points.length - 1, from + move)));
    } else if (event.key === "Enter") this.openMarked();
  }
}
