// The websocket: a snapshot, then changes; back-off, resume where it stopped, resnapshot when told to (docs of /api/v1/live).

const FIRST = 500, MOST = 15000, SILENCE = 40000;

export class Live {
  constructor({ onSnapshot, onSections, onEvents, onLink }) {
    Object.assign(this, { onSnapshot, onSections, onEvents, onLink });
    this.seq = null;
    this.delay = FIRST;
    addEventListener("online", () => this.retryNow());
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.retryNow(); });
  }

  open() {
    clearTimeout(this.timer);
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const since = this.seq === null ? "" : `?since=${this.seq}`;
    this.onLink("connecting");
    const socket = (this.socket = new WebSocket(`${scheme}://${location.host}/api/v1/live${since}`));
    socket.onmessage = (message) => { if (socket === this.socket) this.take(JSON.parse(message.data)); };
    socket.onclose = () => { if (socket === this.socket) this.lost(); };
    this.listen();
  }

  // Silence longer than three heartbeats means a connection that died without a word.
  listen() {
    clearTimeout(this.silence);
    this.silence = setTimeout(() => { const socket = this.socket; this.socket = null; socket?.close(); this.lost(); }, SILENCE);
  }

  take(frame) {
    this.listen();
    this.delay = FIRST;
    if (frame.type === "snapshot") {
      this.seq = frame.seq;
      this.onSnapshot(frame.sections);
      this.onLink("live");
    } else if (frame.type === "resumed") {
      this.onLink("live");
    } else if (frame.type === "events") {
      for (const event of frame.events) this.seq = event.seq;
      this.onEvents(frame.events);
    } else if (frame.type === "state") {
      this.onSections(frame.sections);
    } else if (frame.type === "resnapshot") {
      this.seq = null;
    }
  }

  lost() {
    clearTimeout(this.silence);
    clearTimeout(this.timer);
    this.socket = null;
    const wait = this.delay * (0.75 + Math.random() / 2);
    this.delay = Math.min(MOST, 2 * this.delay);
    this.onLink("lost", wait / 1000);
    this.timer = setTimeout(() => this.open(), wait);
  }

  retryNow() {
    if (this.socket === null) { this.delay = FIRST; this.open(); }
  }
}
