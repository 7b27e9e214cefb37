// One submission: why it stands where it stands, its way through the judge, every run with the audit, and its code.

import { chip, when } from "./board.js";
import { drawCode } from "./code.js";
import { byId, h, marked, show } from "./dom.js";
import { STATUS_WORDS, bytes, clean, clock, count, mfu, number, opening, percent, short, span, webAddress } from "./format.js";

const fact = (name, ...value) => [h("dt", null, name), h("dd", null, ...value)];
const mono = (text) => h("bdi", { class: "mono" }, clean(text, 400));

const failures = (run) => run.audit.statistics.filter((x) => x.limit !== null && !(x.value !== null && x.value <= x.limit));

export class Detail {
  constructor(onClose) {
    this.dialog = byId("detail");
    this.id = null;
    this.faults = null;
    this.open_runs = new Set();
    this.dialog.addEventListener("close", () => { this.id = null; onClose(); });
    this.dialog.addEventListener("click", (e) => { if (e.target === this.dialog) this.dialog.close(); });
  }

  async open(id) {
    if (id === this.id) return;
    this.id = id;
    this.code = null;
    this.drawn = false;
    this.open_runs.clear();
    show(this.dialog, this.head(h("h2", { id: "detail-title" }, "Submission")), h("p", { class: "empty" }, "Asking the validator…"));
    if (!this.dialog.open) this.dialog.showModal();
    this.dialog.scrollTop = 0;
    await this.refresh();
  }

  close() { if (this.dialog.open) this.dialog.close(); }

  // Called again for every event about this submission; a burst is one request.
  changed(id) {
    if (!id || id !== this.id) return;
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.refresh(), 200);
  }

  async refresh() {
    const id = this.id;
    try {
      const ask = (path) => fetch(`/api/v1/${path}`).then(async (answer) => ({ ok: answer.ok, body: await answer.json() }));
      const [detail, runs, faults] = await Promise.all([ask(`submissions/${encodeURIComponent(id)}`), ask(`submissions/${encodeURIComponent(id)}/runs`), this.faults ?? ask("faults")]);
      if (id !== this.id) return;
      this.faults = faults;
      if (!detail.ok) return show(this.dialog, this.head(h("h2", { id: "detail-title" }, "No such submission")), h("p", { class: "empty" }, clean(detail.body.message)));
      this.draw(detail.body, runs.ok ? runs.body.items : []);
    } catch (error) {
      if (id === this.id) show(this.dialog, this.head(h("h2", { id: "detail-title" }, "Submission")), h("p", { class: "empty" }, `The validator did not answer (${clean(error.message)}).`));
    }
  }

  head(...children) {
    return h("div", { class: "sheet-head" }, ...children, h("span", { class: "grow" }), h("button", { class: "icon-button", type: "button", "aria-label": "Close", "data-key": "close", onclick: () => this.close() }, "✕"));
  }

  draw({ submission, transitions, verdict }, live) {
    const runs = verdict?.runs.length ? verdict.runs : live;
    if (verdict && !this.drawn) for (const run of runs) if (failures(run).length) this.open_runs.add(run.index);
    this.drawn = Boolean(verdict);
    const place = this.dialog.scrollTop;
    show(this.dialog,
      this.head(h("h2", { id: "detail-title" }, submission.score_mfu === null ? "Submission" : [mfu(submission.score_mfu, 3), h("small", null, "% MFU")]), chip(submission.status)),
      h("p", { class: "lede" }, STATUS_WORDS[submission.status] ?? "", submission.queue_position ? `, number ${submission.queue_position} in the queue` : "", submission.progress ? `: ${clean(submission.progress, 80)}` : "", submission.provisional ? " · seen at the head, finality still pending" : ""),
      submission.reason && this.reason(submission.reason, submission),
      this.facts(submission),
      h("h3", null, "Way"), this.way(transitions),
      runs.length > 0 && [h("h3", null, "Runs"), this.runs(runs)],
      verdict && [h("h3", null, "Measured on"), this.environment(verdict)],
      h("h3", null, "Code"), this.codeView(submission));
    this.dialog.scrollTop = place;
  }

  reason(reason, submission) {
    const row = this.faults?.body.items?.find((fault) => fault.code === reason.code);
    const ours = row && row.whose !== "submission";
    const judged = typeof reason.measured === "number" && typeof reason.limit === "number";
    return h("section", { class: `reason ${ours ? "ours" : "theirs"}` },
      h("p", { class: "reason-head" }, h("b", null, row ? clean(row.title) : "Reason"), h("span", { class: "muted" }, `${reason.code} · ${clean(reason.stage, 20)}${ours ? ` · the ${row.whose}'s, not the miner's` : ""}`)),
      h("p", null, h("bdi", null, marked(clean(reason.message)))),
      judged && gauge({ name: reason.rule, value: reason.measured, limit: reason.limit, where: "" }),
      !judged && reason.measured !== null && h("p", { class: "note" }, "measured ", mono(number(reason.measured)), reason.limit !== null && [", limit ", mono(number(reason.limit))]),
      reason.rule && !judged && h("p", { class: "note" }, "rule ", mono(reason.rule), reason.line !== null && `, line ${reason.line}`),
      reason.line !== null && ["scored", "rejected"].includes(submission.status) && h("button", { class: "button small", type: "button", "data-key": "line", onclick: () => this.wantCode(submission, reason.line) }, `Show line ${reason.line}`),
      reason.hint && h("p", { class: "todo" }, h("b", null, "What to do: "), h("bdi", null, marked(clean(reason.hint)))));
  }

  facts(x) {
    const href = webAddress(x.url);
    return h("dl", { class: "facts" },
      fact("miner", mono(x.hotkey), x.uid === null ? h("span", { class: "muted" }, " not registered") : h("span", { class: "uid" }, `uid ${x.uid}`)),
      fact("committed", `block ${count(x.commit_block)}`, x.reveal_block !== null && `, revealed in block ${count(x.reveal_block)}`),
      x.status === "sealed" && fact("sealed", opening(x)),
      x.url && fact("file", href ? h("a", { href, rel: "noopener noreferrer nofollow", target: "_blank" }, mono(x.url)) : mono(x.url)),
      x.sha256 && fact("sha256", mono(x.sha256)),
      x.attempts > 1 && fact("attempts", `${x.attempts}; more than one means that ours failed, not the miner's`),
      fact("rules", mono(x.rules_version || "–")), fact("id", mono(x.id)));
  }

  way(transitions) {
    return h("ol", { class: "way" }, transitions.map((step, i) => h("li", { class: clean(step.status) },
      h("i", { class: "dot" }), h("b", null, clean(step.status)), h("span", { class: "muted" }, step.block === null ? "" : `block ${count(step.block)}`),
      h("time", { title: clock(step.at) }, i ? `+${span(step.at - transitions[i - 1].at)}` : clock(step.at)),
      (step.note || (step.reason && i < transitions.length - 1)) && h("span", { class: "note" }, h("bdi", null, clean(step.note || step.reason.message, 300))))));
  }

  runs(runs) {
    const head = ["run", "seconds", "MFU %", "tokens/s", "loss", "audit"].map((name, i) => h("th", { scope: "col", class: i && i < 5 ? "num" : "" }, name));
    const slowest = Math.max(...runs.flatMap((run) => run.step_seconds), 1e-9);
    return h("table", { class: "list runs" }, h("thead", null, h("tr", null, head)), runs.map((run) => this.run(run, slowest)));
  }

  run(run, slowest) {
    const open = this.open_runs.has(run.index);
    const failed = failures(run);
    const verdict = run.void ? h("span", { class: "warn" }, "void") : failed.length ? h("span", { class: "bad" }, `${clean(run.audit.worst || failed[0].name, 40)}${failed.length > 1 ? ` and ${failed.length - 1} more` : ""}`) : h("span", { class: "good" }, "passed");
    const more = h("tr", { class: "more-row", hidden: !open, id: `run-${run.index}` }, h("td", { colspan: 6 },
      run.void && h("p", { class: "warn" }, `This run does not count: ${clean(run.void)}`),
      h("p", { class: "note" }, h("bdi", null, clean(run.audit.words, 300))),
      h("div", { class: "gauges" }, run.audit.statistics.map(gauge)),
      run.step_seconds.length > 0 && h("div", { class: "steps", "aria-label": "seconds per step" }, run.step_seconds.map((x, i) => h("span", { class: "step", title: `step ${i + 1}: ${span(x)}` }, h("i", { "width%": (100 * x) / slowest }), h("small", null, `step ${i + 1} · ${span(x)}`)))),
      h("p", { class: "note" }, run.claimed_seconds !== null && `its own clock said ${number(run.claimed_seconds)} s · `, `the judge's reads took ${span(run.read_seconds)} (subtracted)`, run.peak_memory_bytes !== null && ` · peak memory ${bytes(run.peak_memory_bytes)} as claimed`,
        Object.entries(run.telemetry).map(([name, value]) => ` · ${clean(name, 40).replaceAll("_", " ")} ${number(value)}`))));
    const toggle = h("button", { class: "disclose", type: "button", "aria-expanded": String(open), "aria-controls": `run-${run.index}`, "data-key": `run-${run.index}` }, run.scored ? `${run.index}` : "warm-up");
    toggle.addEventListener("click", () => {
      more.hidden = !more.hidden;
      toggle.setAttribute("aria-expanded", String(!more.hidden));
      this.open_runs[more.hidden ? "delete" : "add"](run.index);
    });
    return h("tbody", null, h("tr", { class: run.scored ? "" : "muted" },
      h("td", null, toggle), h("td", { class: "num" }, number(run.seconds)), h("td", { class: "num" }, h("b", null, mfu(run.mfu, 3))), h("td", { class: "num" }, count(run.tokens_per_second)),
      h("td", { class: "num" }, run.final_loss === null ? "not finite" : run.final_loss.toFixed(4)), h("td", null, verdict)), more);
  }

  environment(verdict) {
    const known = Object.entries(verdict.environment).filter(([, value]) => value).slice(0, 100);
    const [limits, versions] = [known.filter(([name]) => name.startsWith("limit")), known.filter(([name]) => !name.startsWith("limit"))];
    const facts = (entries) => entries.map(([name, value]) => fact(clean(name, 60).replaceAll("_", " "), mono(value)));
    return [h("dl", { class: "facts" },
      fact("device", clean(verdict.device, 120), verdict.peak_tflops > 0 && `, peak ${number(verdict.peak_tflops)} TFLOPS (${clean(verdict.peak_source, 20)})`),
      fact("model", clean(verdict.model, 120), verdict.profile && ` · profile ${clean(verdict.profile, 60)}`),
      facts(versions),
      verdict.notes.length > 0 && fact("notes", verdict.notes.map((note) => h("p", null, clean(note, 300))))),
      limits.length > 0 && h("details", null, h("summary", null, "What held it in the sandbox"), h("dl", { class: "facts" }, facts(limits.map(([name, value]) => [name.replace(/^limit\./, ""), value]))))];
  }

  codeView(submission) {
    const judged = ["scored", "rejected"].includes(submission.status);
    if (!judged) return h("p", { class: "note" }, "Shown once it has been judged, so that nobody can copy a submission that still waits.");
    if (this.code) return this.code;
    return h("div", { id: "code-place" }, h("button", { class: "button", type: "button", "data-key": "code", onclick: () => this.wantCode(submission, submission.reason?.line ?? null) }, "Show train.py"));
  }

  async wantCode(submission, line) {
    if (!this.code) {
      const answer = await fetch(`/api/v1/submissions/${encodeURIComponent(submission.id)}/code`);
      if (submission.id !== this.id) return;
      if (!answer.ok) return show("code-place", h("p", { class: "note" }, clean((await answer.json()).message)));
      this.code = drawCode(await answer.text(), submission.reason?.line ?? null);
      byId("code-place").replaceWith(this.code);
    }
    (line === null ? null : this.code.querySelector(`[data-line="${line}"]`))?.scrollIntoView({ block: "center" });
  }
}

// A statistic against its limit: the bar is full at one and a half times the limit, the line is the limit.
export function gauge(x) {
  const judged = x.limit !== null;
  const share = x.value === null ? Infinity : judged ? (x.limit > 0 ? x.value / x.limit : x.value > 0 ? Infinity : 0) : 0;
  const failed = judged && !(share <= 1);
  const words = x.value === null ? "not finite" : number(x.value);
  return h("div", { class: `gauge ${failed ? "failed" : judged ? "" : "reported"}` },
    h("span", { class: "gauge-name" }, clean(x.name, 60).replaceAll("_", " "), x.where && h("small", null, clean(x.where, 100))),
    h("span", { class: "gauge-bar", "aria-hidden": "true" }, judged && [h("i", { "width%": (100 * Math.min(share, 1.5)) / 1.5 }), h("b", null)]),
    h("span", { class: "gauge-value" }, words, judged ? h("small", null, ` of ${number(x.limit)}${Number.isFinite(share) && share > 1 ? `, ${share >= 10 ? Math.round(share) : share.toFixed(1)} ×` : ""}`) : h("small", null, " not judged")));
}
