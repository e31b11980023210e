// Draws one reply while it grows. All text of the model and the server is set as text, never as markup.

const WIDTH = 800;
const HEIGHT = 220;

const find = (id) => document.getElementById(id);

/** Mean and spread of all scores seen so far: what "high" means for this predictor. */
class Scale {
  count = 0;
  mean = 0;
  squares = 0;

  add(score) {
    this.count += 1;
    const before = score - this.mean;
    this.mean += before / this.count;
    this.squares += before * (score - this.mean);
  }

  /** 0 for a low score, 1 for a high one. */
  heat(score) {
    const spread = Math.sqrt(this.squares / Math.max(1, this.count)) || 1;
    return Math.min(1, Math.max(0, 0.4 + (score - this.mean) / (4 * spread)));
  }
}

/** The tokens of the trace, a span for each part of the text. */
class Trace {
  constructor(root, question) {
    this.root = root;
    this.scale = new Scale();
    this.scores = new Map();
    this.dropped = new Set();
    this.spans = [];
    const asked = document.createElement("span");
    asked.className = "question";
    asked.textContent = `${question}\n\n`;
    root.replaceChildren(asked);
  }

  grow({ text, first, end, tokens, finish }) {
    if (text !== "" || end > first) this.#append(text, first, end);
    this.#learn(tokens);
    for (const drop of tokens.dropped) for (const position of drop.positions) this.#drop(position);
    if (finish) this.#settle(tokens);
  }

  #append(text, first, end) {
    const node = document.createElement("span");
    node.className = "token";
    node.textContent = text;
    const span = { node, first, end, heat: null };
    for (let position = first; position < end; position += 1) this.spans[position] = span;
    this.root.append(node);
  }

  #learn({ first, scores }) {
    scores.forEach((score, index) => {
      const position = first + index;
      if (score === null || this.scores.has(position)) return;
      this.scores.set(position, score);
      const span = this.spans[position];
      if (span === undefined) return; // the question
      this.scale.add(score);
      this.#paint(span);
    });
  }

  /** A span is as warm as the warmest of its tokens. */
  #paint(span) {
    const known = [];
    for (let at = span.first; at < span.end; at += 1) if (this.scores.has(at)) known.push(this.scores.get(at));
    if (known.length === 0) return;
    const score = Math.max(...known);
    span.node.style.setProperty("--heat", this.scale.heat(score).toFixed(3));
    const until = span.end - 1 > span.first ? ` to ${span.end - 1}` : "";
    span.node.title = `position ${span.first}${until}, score ${score}`;
  }

  #drop(position) {
    if (this.dropped.has(position)) return;
    this.dropped.add(position);
    const span = this.spans[position];
    if (span === undefined) return;
    for (let at = span.first; at < span.end; at += 1) if (!this.dropped.has(at)) return;
    span.node.classList.add("dropped");
  }

  /** The last part tells of all tokens: paint them by one scale, and take back what was undone. */
  #settle(tokens) {
    const dropped = new Set(tokens.dropped.flatMap((drop) => drop.positions));
    for (const span of new Set(this.spans)) {
      if (span === undefined) continue;
      this.#paint(span);
      let all = span.end > span.first;
      for (let at = span.first; at < span.end; at += 1) all = all && dropped.has(at);
      span.node.classList.toggle("dropped", all);
    }
  }
}

/** What the request holds, a sawtooth, and what the full cache would. */
class Chart {
  corners = [];
  last = null;
  compactions = 0;
  waiting = false;

  add(part) {
    if (this.last === null) this.corners.push([part.question_len, part.question_len]);
    if (this.last !== null && part.compactions !== this.compactions) {
      this.corners.push(this.last, [part.seen, part.held]);
    }
    this.compactions = part.compactions;
    this.last = [part.seen, part.held];
    this.part = part;
    if (!this.waiting) requestAnimationFrame(() => this.#draw());
    this.waiting = true;
  }

  #draw() {
    this.waiting = false;
    const { question_len: question, seen, held, budget, compactions } = this.part;
    const most = Math.max(seen, budget ?? 0) * 1.05;
    const x = (tokens) => ((tokens - question) / Math.max(1, seen - question)) * WIDTH;
    const y = (tokens) => HEIGHT - (tokens / most) * HEIGHT;
    const line = (points) => points.map(([at, count]) => `${x(at).toFixed(1)},${y(count).toFixed(1)}`).join(" ");
    find("held-line").setAttribute("points", line([...this.corners, this.last]));
    find("full-line").setAttribute("points", line([[question, question], [seen, seen]]));
    const level = budget === null ? -10 : y(budget);
    const ends = { x1: 0, x2: WIDTH, y1: level, y2: level };
    for (const [name, value] of Object.entries(ends)) find("limit").setAttribute(name, value);
    find("top").textContent = `${Math.round(most)} KV tokens${budget === null ? "" : `, budget ${budget}`}`;
    find("right").textContent = `${seen} tokens seen`;
    find("held").value = held;
    find("full").value = seen;
    find("compactions").value = compactions;
    find("dropped").value = seen - held;
  }
}

async function* linesOf(response) {
  let rest = "";
  for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + chunk).split("\n");
    rest = lines.pop();
    yield* lines.filter((line) => line !== "").map((line) => JSON.parse(line));
  }
}

function say(text, failed = false) {
  find("status").textContent = text;
  find("status").classList.toggle("failed", failed);
}

/** What the form asks for; an empty field is left to the server. */
function asked() {
  const numbers = ["budget", "local_window", "keep_ratio", "max_new_tokens"];
  const given = numbers.filter((name) => find(name).value !== "");
  const fields = Object.fromEntries(given.map((name) => [name, Number(find(name).value)]));
  return { question: find("question").value, enabled: find("enabled").checked, ...fields };
}

async function reasonOf(response) {
  const body = await response.json().catch(() => ({ detail: response.statusText }));
  return typeof body.detail === "string" ? body.detail : JSON.stringify(body.detail);
}

async function ask(signal) {
  const body = asked();
  const headers = { "Content-Type": "application/json" };
  const response = await fetch("/ask", { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) throw new Error(await reasonOf(response));
  const trace = new Trace(find("trace"), body.question);
  const chart = new Chart();
  for await (const part of linesOf(response)) {
    if (part.error !== undefined) throw new Error(part.error);
    trace.grow(part);
    chart.add(part);
    if (part.finish) say(`Ended by ${part.finish.type}.`);
  }
}

let running = null;

async function submit(event) {
  event.preventDefault();
  running?.abort();
  const controller = new AbortController();
  running = controller;
  find("stop").disabled = false;
  say("Thinking …");
  try {
    await ask(controller.signal);
  } catch (error) {
    if (running === controller) say(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
  } finally {
    if (running === controller) find("stop").disabled = true;
  }
}

async function introduce() {
  const response = await fetch("/server");
  if (!response.ok) {
    find("server").textContent = await reasonOf(response);
    return;
  }
  const { model, windows, question } = await response.json();
  const { budget, local_window: local, keep_ratio: ratio } = windows;
  find("server").textContent = `${model}: budget ${budget}, local window ${local}, keep ratio ${ratio}`;
  if (find("question").value === "") find("question").value = question;
}

find("form").addEventListener("submit", submit);
find("stop").addEventListener("click", () => running?.abort());
introduce();
