// The sections that the validator pushes whole: header, tiles, leaderboard, queue, slots, weights.

import { byId, h, marked, show } from "./dom.js";
import { ago, clean, count, iso, mfu, percent, plural, short, span, now } from "./format.js";

export const chip = (status) => h("span", { class: `chip ${clean(status)}` }, h("i", { class: "dot" }), clean(status));
export const when = (at) => h("time", { datetime: iso(at), title: iso(at), "data-at": at }, ago(at));
export const opener = (id, label, key, ...children) => h("a", { class: "opener", href: `#/submission/${encodeURIComponent(id)}`, "aria-label": label, "data-key": key }, ...children);
const empty = (words) => h("p", { class: "empty" }, marked(words));
const bar = (share, kind = "") => h("span", { class: `bar ${kind}`, "aria-hidden": "true" }, h("span", { "width%": 100 * share }));
const miner = (hotkey, uid) => h("span", { class: "miner" }, h("span", { class: "uid" }, uid === null ? "no uid" : `uid ${uid}`), h("bdi", { class: "mono", title: clean(hotkey, 80) }, short(hotkey)));

export function drawHeader(overview) {
  const dev = Boolean(overview.notice);
  show("notice", clean(overview.notice));
  byId("notice").hidden = !dev;
  show("network", `${clean(overview.network, 60)} · subnet ${overview.netuid}`);
  byId("network").classList.toggle("dev", dev);
  show("block", overview.block === null ? "no block yet" : [h("span", { class: "muted" }, "block "), count(overview.block)]);
  byId("block").title = overview.finalized_block === null ? "" : `finalised up to block ${overview.finalized_block}`;
  const trouble = overview.problems.length > 0;
  const [kind, words] = trouble ? ["bad", plural(overview.problems.length, "problem")] : overview.ready ? ["good", "ready"] : ["warm", "getting ready"];
  const health = byId("health");
  health.className = `pill ${kind}`;
  show(health, h("i", { class: "dot" }), words);
  show("problems", ...overview.problems.map((problem) => h("p", null, clean(problem))));
  byId("problems").hidden = !trouble;
  show("about", `Crusades ${clean(overview.version, 40)} · rules ${clean(overview.rules_version, 60)} · ${clean(overview.profile, 60)} · up ${span(now() - overview.started_at)}`);
  document.title = overview.leader ? `${mfu(overview.leader.score_mfu)} % · Crusades` : "Crusades";
}

const tile = (name, value, unit, note, kind = "") =>
  h("div", { class: `tile ${kind}` }, h("h2", null, name), h("p", { class: "value" }, value, unit && h("small", null, unit)), h("p", { class: "note" }, note));

export function drawTiles(overview) {
  const { counts, leader, weights } = overview;
  const n = (status) => counts[status] ?? 0;
  const total = Object.values(counts).reduce((a, b) => a + b, 0);
  const way = n("sealed") + n("revealed") + n("fetched") + n("checked");
  const busy = overview.slots.filter((slot) => slot.state === "running").length;
  show("tiles",
    leader
      ? tile("Leader", mfu(leader.score_mfu), "% MFU", [miner(leader.hotkey, leader.uid), opener(leader.submission_id, "Open the leading submission", "tile-leader", "open")], "lead")
      : tile("Leader", "–", "", "nobody has been scored yet", "lead"),
    tile("Submissions", count(total), "", [h("span", { class: "good" }, `${count(n("scored"))} scored`), " · ", h("span", { class: "bad" }, `${count(n("rejected"))} rejected`), n("faulted") ? ` · ${count(n("faulted"))} faulted` : ""]),
    tile("Queue", count(n("queued")), "waiting", `${plural(n("running"), "submission")} on ${busy} of ${plural(overview.slots.length, "slot")}${way ? ` · ${count(way)} on the way` : ""}`),
    tile("Weights", weights.held ? "held" : weights.equal === null ? "–" : weights.equal ? "in step" : "differ", "", weights.held ? clean(weights.held, 160) : weights.age_blocks === null ? "nothing set yet" : `on chain, set ${plural(weights.age_blocks, "block")} ago`, weights.held || weights.equal === false ? "warn" : ""));
}

export function drawLeaderboard(rows) {
  if (!rows.length) return show("leaderboard", empty("No accepted submission yet. `crusades submit URL` enters one."));
  const top = Math.max(...rows.map((row) => row.score_mfu), 1e-9);
  const line = (row) => h("li", { class: row.rank === 1 ? "first" : "" },
    opener(row.submission_id, `Rank ${row.rank}, ${mfu(row.score_mfu)} percent MFU, hotkey ${clean(row.hotkey, 80)}`, `rank-${row.submission_id}`,
      h("span", { class: "rank" }, row.rank),
      h("span", { class: "who" }, miner(row.hotkey, row.uid), h("span", { class: "why" }, clean(row.why, 200))),
      h("span", { class: "score" }, bar(row.score_mfu / top, row.rank === 1 ? "gold" : ""), h("b", null, mfu(row.score_mfu)), h("small", null, "%")),
      h("span", { class: "share", title: "share of the weights" }, row.weight > 0 ? percent(row.weight, row.weight < 0.1 ? 1 : 0) : "–")));
  show("leaderboard", h("div", { class: "board-head", "aria-hidden": "true" }, h("span", null, "#"), h("span", null, "miner"), h("span", null, "MFU"), h("span", null, "weight")),
    h("ol", { class: "board" }, rows.slice(0, 25).map(line)), rows.length > 25 && h("p", { class: "more" }, `and ${rows.length - 25} more in /api/v1/leaderboard`));
}

const PHASE = /run (\d+) of (\d+)/;
export function drawSlots(slots, submissions) {
  if (!slots.length) return show("slots", empty("No device has been found yet."));
  show("slots", slots.map((slot) => {
    const phase = PHASE.exec(slot.detail);
    const kind = { running: "running", idle: "scored", warming: "queued" }[slot.state] ?? "rejected";
    const who = slot.submission_id && submissions.get(slot.submission_id);
    return h("div", { class: "slot" },
      h("div", { class: "slot-head" }, h("b", null, clean(slot.name, 40)), h("span", { class: "muted" }, clean(slot.device, 60)), h("span", { class: "grow" }), h("span", { class: `chip ${kind}` }, h("i", { class: "dot" }), clean(slot.state, 40))),
      slot.submission_id && h("p", null, opener(slot.submission_id, `Open the running submission ${slot.submission_id}`, `slot-${slot.name}`, who ? miner(who.hotkey, who.uid) : h("span", { class: "mono" }, slot.submission_id))),
      h("p", { class: "note" }, clean(slot.detail, 200) || (slot.state === "idle" ? "ready for the next submission" : ""), slot.since > 0 && h("span", { class: "right" }, when(slot.since))),
      slot.state === "running" && h("span", { class: `bar thin ${phase ? "run" : "run wait"}`, role: "progressbar", "aria-label": clean(slot.detail, 200) || "running", "aria-valuenow": phase?.[1], "aria-valuemax": phase?.[2] }, h("span", { "width%": phase ? (100 * phase[1]) / phase[2] : 30 })));
  }));
}

const QUEUE_SHOWN = 8;

export function drawQueue(queue) {
  const way = Object.entries(queue.earlier).filter(([, n]) => n > 0).map(([status, n]) => `${count(n)} ${status}`);
  show("earlier", way.length ? `on the way: ${way.join(", ")}` : "");
  if (!queue.items.length) return show("queue", empty("Nobody is waiting."));
  const rows = queue.items.slice(0, QUEUE_SHOWN).map((row) => h("li", null, opener(row.id, `Open ${row.status} submission of ${clean(row.hotkey, 80)}`, `queue-${row.id}`,
    h("span", { class: "rank" }, row.status === "running" ? "▸" : row.queue_position ?? ""), h("span", { class: "who" }, miner(row.hotkey, row.uid)),
    h("span", { class: "note" }, row.status === "running" ? clean(row.progress, 60) || "running" : `block ${row.commit_block}`))));
  show("queue", h("ol", { class: "board small" }, rows), queue.items.length > QUEUE_SHOWN && h("p", { class: "more" }, `and ${queue.items.length - QUEUE_SHOWN} more`));
}

export function drawWeights(weights) {
  const uids = [...new Set([...Object.keys(weights.asked), ...Object.keys(weights.on_chain)])].sort((a, b) => (weights.asked[b] ?? 0) - (weights.asked[a] ?? 0) || a - b);
  const state = weights.equal === null ? "" : weights.equal ? "the chain holds what was asked" : "the chain holds something else";
  show("weights-state", state);
  if (!uids.length) return show("weights", weights.held ? h("p", { class: "warn" }, clean(weights.held, 300)) : empty("No weights have been set yet."));
  show("weights",
    weights.held && h("p", { class: "warn" }, "Held: ", clean(weights.held, 300)),
    h("table", { class: "pairs" },
      h("thead", null, h("tr", null, ["uid", "asked", "on chain"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", null, uids.slice(0, 10).map((uid) => h("tr", null, h("th", { scope: "row" }, clean(uid, 10)),
        [weights.asked[uid], weights.on_chain[uid]].map((share, i) => h("td", null, bar(share ?? 0, i ? "chain" : "gold"), h("span", null, share === undefined ? "–" : percent(share)))))))),
    h("p", { class: "note" }, weights.asked_at !== null && ["asked ", when(weights.asked_at)], weights.applied_block !== null && ` · on chain at block ${count(weights.applied_block)}`, weights.age_blocks !== null && `, ${plural(weights.age_blocks, "block")} ago`));
}
