// Numbers, times and foreign text in words. No DOM in here.

let skew = 0; // seconds that the validator's clock is ahead of this one's
export const setClock = (now) => { skew = now - Date.now() / 1000; };
export const now = () => Date.now() / 1000 + skew;

// Control and direction characters could reorder or hide what stands beside them: shown as a sign instead.
const INVISIBLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff9-\ufffb]|\udb40[\udc00-\udc7f]/g;
export const clean = (text, most = 2000) => {
  const seen = String(text ?? "").replace(/[\t\n]+/g, " ").replace(INVISIBLE, "\ufffd");
  return seen.length > most ? `${seen.slice(0, most)}…` : seen;
};
export const INVISIBLE_IN_CODE = INVISIBLE;

export const short = (key) => { const text = clean(key, 80); return text.length > 14 ? `${text.slice(0, 6)}…${text.slice(-5)}` : text; };
export const percent = (share, digits = 1) => (Number.isFinite(share) ? `${(100 * share).toFixed(digits)} %` : "–");
export const mfu = (value, digits = 2) => (Number.isFinite(value) ? value.toFixed(digits) : "–");
export const count = (value) => (Number.isFinite(value) ? Math.round(value).toLocaleString("en") : "–");
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

export function number(value) {
  if (typeof value === "string") return clean(value, 120);
  if (!Number.isFinite(value)) return "not finite";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e6 || size < 1e-3 ? value.toExponential(2).replace("e+", "e") : Number(value.toPrecision(4)).toLocaleString("en", { maximumFractionDigits: 6 });
}

export function span(seconds) {
  const s = Math.max(0, seconds);
  if (s < 1) return `${Math.round(1000 * s)} ms`;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 129600) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}
export const ago = (at) => (now() - at < 2 ? "now" : `${span(now() - at)} ago`);
export const clock = (at) => new Date(1000 * at).toLocaleString("en-GB", { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" });
export const iso = (at) => new Date(1000 * at).toISOString();

// When a seal is expected to open; empty for anything else.
export function opening(x) {
  if (x.status !== "sealed" || x.reveal_round == null) return "";
  const left = x.reveal_expected_at == null ? 0 : x.reveal_expected_at - now();
  return `opens ${left > 0 ? `in about ${span(left)}` : "soon"} (drand round ${clean(x.reveal_round)})`;
}

export function bytes(value) {
  if (!Number.isFinite(value)) return "–";
  return value >= 2 ** 30 ? `${(value / 2 ** 30).toFixed(1)} GiB` : `${(value / 2 ** 20).toFixed(1)} MiB`;
}

export const STATUSES = ["sealed", "revealed", "fetched", "checked", "queued", "running", "scored", "rejected", "faulted"];
export const STATUS_WORDS = {
  sealed: "committed, still encrypted", revealed: "revealed on chain", fetched: "file downloaded", checked: "rules checked", queued: "waiting for a slot",
  running: "being judged", scored: "judged and scored", rejected: "judged and rejected", faulted: "given up, through no fault of the miner",
};

// Only plain web addresses become links: a commitment may hold any text.
export function webAddress(text) {
  try {
    const url = new URL(text);
    return ["http:", "https:"].includes(url.protocol) && !url.username && !url.password ? url.href : null;
  } catch { return null; }
}
