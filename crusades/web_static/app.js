// The page: one picture of the validator, redrawn by section as the live feed says.

import { drawHeader, drawLeaderboard, drawQueue, drawSlots, drawTiles, drawWeights } from "./board.js";
import { HistoryChart } from "./chart.js";
import { Detail } from "./detail.js";
import { byId, h, show } from "./dom.js";
import { ago, now, setClock, span } from "./format.js";
import { SubmissionList } from "./list.js";
import { Live } from "./live.js";

const rows = new Map(); // submission id → the newest that was seen of it
const sections = {};
const list = new SubmissionList(rows);
const chart = new HistoryChart(byId("history"), (id) => { location.hash = `#/submission/${id}`; });
const detail = new Detail(() => { if (location.hash.startsWith("#/submission/")) history.pushState(null, "", "#/"); });

const draw = {
  overview: (overview) => { setClock(overview.now); drawHeader(overview); drawTiles(overview); },
  leaderboard: ({ items }) => drawLeaderboard(items),
  history: ({ items }) => chart.update(items),
  queue: (queue) => { for (const row of queue.items) { rows.set(row.id, row); list.changed(row); } drawQueue(queue); if (sections.slots) drawSlots(sections.slots.items, rows); },
  slots: ({ items }) => drawSlots(items, rows),
  weights: (weights) => drawWeights(weights),
  submissions: (page) => list.snapshot(page),
};

function apply(changed) {
  for (const [name, content] of Object.entries(changed)) {
    sections[name] = content;
    draw[name]?.(content);
  }
}

const live = new Live({
  onSnapshot: ({ submissions, ...rest }) => { apply({ submissions, ...rest }); detail.changed(detail.id); },
  onSections: apply,
  onEvents: (events) => {
    for (const event of events) {
      if (event.kind === "submission" && event.data.id) list.changed(event.data);
      if (event.submission_id) detail.changed(event.submission_id);
    }
  },
  onLink: (state, wait) => {
    const pill = byId("link");
    pill.className = `pill ${{ live: "good", connecting: "warm", lost: "bad" }[state]}`;
    show(pill, h("i", { class: "dot" }), { live: "live", connecting: "connecting", lost: `no connection, again in ${span(wait ?? 0)}` }[state]);
    document.body.classList.toggle("stale", state === "lost");
  },
});

function route() {
  const match = /^#\/submission\/([0-9a-f]{16})$/.exec(location.hash);
  if (match) void detail.open(match[1]);
  else detail.close();
}

byId("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("theme", document.documentElement.dataset.theme); } catch { /* a browser that keeps nothing forgets the choice */ }
});
try { const kept = localStorage.getItem("theme"); if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept; } catch { /* as above */ }

// Ages grow by themselves.
setInterval(() => { for (const node of document.querySelectorAll("time[data-at]")) node.textContent = ago(Number(node.dataset.at)); if (sections.overview) byId("about").textContent = byId("about").textContent.replace(/up .*$/, `up ${span(now() - sections.overview.started_at)}`); }, 5000);

addEventListener("hashchange", route);
live.open();
route();
