// Submissions: the newest live, older ones by page, filtered by the server.

import { chip, opener, when } from "./board.js";
import { byId, h, marked, show } from "./dom.js";
import { STATUSES, clean, count, mfu, opening, short } from "./format.js";

const KEEP = 50;

const reasonWords = (row) => {
  if (row.reason) return h("span", { class: row.status === "rejected" ? "bad" : "muted" }, row.reason.rule && h("code", null, clean(row.reason.rule, 40)), " ", marked(clean(row.reason.message, 300)));
  if (row.status === "running") return clean(row.progress, 80) || "running";
  if (row.status === "queued" && row.queue_position) return `number ${row.queue_position} in the queue`;
  if (row.status === "sealed") return opening(row);
  if (row.provisional) return "seen at the head, not yet final";
  return "";
};

const line = (row) => h("tr", { class: `row ${clean(row.status)}` },
  h("td", { class: "c-status" }, chip(row.status)),
  h("td", { class: "c-miner" }, opener(row.id, `Open submission ${row.id}, ${row.status}, by ${clean(row.hotkey, 80)}`, `row-${row.id}`, h("bdi", { class: "mono" }, short(row.hotkey))), h("span", { class: "uid" }, row.uid === null ? "no uid" : `uid ${row.uid}`)),
  h("td", { class: "c-mfu num" }, row.score_mfu === null ? "" : [h("b", null, mfu(row.score_mfu)), h("small", null, "%")]),
  h("td", { class: "c-why" }, h("bdi", null, reasonWords(row))),
  h("td", { class: "c-block num" }, count(row.commit_block)),
  h("td", { class: "c-when" }, when(row.updated_at)));

export class SubmissionList {
  constructor(rows) {
    this.rows = rows; // id → submission, shared with the other sections
    this.items = [];
    this.cursor = null;
    this.filter = { status: "", hotkey: "" };
    this.extended = false; // older pages are shown: new rows are added, none dropped
    show("status", h("option", { value: "" }, "every status"), ...STATUSES.map((status) => h("option", { value: status }, status)));
    byId("filters").addEventListener("submit", (e) => e.preventDefault());
    byId("filters").addEventListener("input", () => { clearTimeout(this.typing); this.typing = setTimeout(() => this.refilter(), 250); });
    byId("submissions").addEventListener("click", (e) => { if (!e.target.closest("a")) e.target.closest("tr.row")?.querySelector("a.opener")?.click(); });
  }

  get filtered() { return Boolean(this.filter.status || this.filter.hotkey); }

  snapshot(page) {
    for (const row of page.items) this.rows.set(row.id, row);
    if (this.filtered) return void this.load(); // the snapshot holds everybody's: ask again for ours
    this.items = page.items.map((row) => row.id);
    this.cursor = page.next_cursor;
    this.extended = false;
    this.draw();
  }

  changed(row) {
    this.rows.set(row.id, row);
    const matches = (!this.filter.status || row.status === this.filter.status) && (!this.filter.hotkey || row.hotkey === this.filter.hotkey);
    const known = this.items.includes(row.id);
    if (!matches && known) this.items = this.items.filter((id) => id !== row.id);
    if (matches && !known) {
      const at = this.items.findIndex((id) => this.rows.get(id).commit_block <= row.commit_block);
      if (at < 0 && this.cursor) return; // older than what is shown
      this.items.splice(at < 0 ? this.items.length : at, 0, row.id);
      if (!this.extended && this.items.length > KEEP) this.items.length = KEEP;
    }
    this.draw();
  }

  refilter() {
    const filter = { status: byId("status").value, hotkey: byId("hotkey").value.trim() };
    if (filter.status === this.filter.status && filter.hotkey === this.filter.hotkey) return;
    this.filter = filter;
    void this.load();
  }

  async load(cursor = null) {
    const query = new URLSearchParams({ limit: KEEP });
    for (const [key, value] of Object.entries({ ...this.filter, cursor })) if (value) query.set(key, value);
    const asked = JSON.stringify(this.filter);
    try {
      const answer = await fetch(`/api/v1/submissions?${query}`);
      const page = await answer.json();
      if (asked !== JSON.stringify(this.filter)) return;
      if (!answer.ok) return show("submissions", h("p", { class: "empty" }, clean(page.message)));
      for (const row of page.items) this.rows.set(row.id, row);
      this.items = cursor ? [...new Set([...this.items, ...page.items.map((row) => row.id)])] : page.items.map((row) => row.id);
      this.cursor = page.next_cursor;
      this.extended = Boolean(cursor);
      this.draw();
    } catch (error) {
      show("submissions", h("p", { class: "empty" }, `The validator did not answer (${clean(error.message)}). It is asked again when the connection is back.`));
    }
  }

  draw() {
    if (!this.items.length) return show("submissions", h("p", { class: "empty" }, this.filtered ? "No submission matches." : "No submission has been seen on chain yet."));
    const head = ["status", "miner", "MFU", "reason", "block", "changed"].map((name, i) => h("th", { scope: "col", class: ["c-status", "c-miner", "c-mfu num", "c-why", "c-block num", "c-when"][i] }, name));
    show("submissions", h("table", { class: "list" }, h("thead", null, h("tr", null, head)), h("tbody", null, this.items.map((id) => line(this.rows.get(id))))),
      this.cursor && h("button", { class: "button", type: "button", "data-key": "older", onclick: () => this.load(this.cursor) }, "Older submissions"));
  }
}
