// Live charts: what the server counted between two answers, for the last three minutes.

/* global uPlot */

const KEPT = 180;
const STAGES = [["queue", "waiting"], ["decode", "decode"], ["prepare", "prepare"], ["infer", "infer"], ["suppress", "suppress"]];
const MIB = 2 ** 20;

// Title, unit, and per line its label and colour (a variable of the style sheet); a rare one is
// listed only where there is something of it.
const CHARTS = {
  rate: ["Requests", "per second", [["answered", "--green"], ["failed", "--red"]]],
  latency: ["Latency", "ms", [["p50", "--blue"], ["p99", "--orange"]]],
  stages: ["Time by stage, mean", "ms", STAGES.map(([, label], i) => [label, ["--soft", "--blue", "--teal", "--orange", "--violet"][i]])],
  queue: ["Queue", "requests", [["waiting", "--orange"], ["running", "--blue"]]],
  batch: ["Batch size, mean", "pictures", [["batch", "--violet"]]],
  memory: ["Memory", "MiB", [["front", "--blue"], ["engines", "--orange"], ["GPU", "--green", "rare"]]],
};

export class Charts {
  #before = null;
  #times = [];
  #charts = {};

  constructor(place) {
    for (const [key, [title, unit, lines]] of Object.entries(CHARTS)) {
      const card = document.createElement("div");
      card.className = "card chart";
      const head = document.createElement("h3");
      head.textContent = `${title}, ${unit}`;
      const legend = document.createElement("ul");
      legend.className = "legend";
      const body = document.createElement("div");
      card.append(head, body, legend);
      place.append(card);
      const values = lines.map(() => []);
      const items = lines.map(([label, color]) => {
        const item = document.createElement("li");
        const mark = document.createElement("i");
        mark.style.setProperty("--hue", `var(${color})`);
        const text = document.createElement("span");
        text.textContent = label;
        item.append(mark, text);
        legend.append(item);
        return text;
      });
      this.#charts[key] = { plot: null, body, lines, values, items, title };
    }
    this.#draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
    new ResizeObserver(() => this.#resize()).observe(place);
  }

  // Take an answer of /page/live.
  add(told) {
    const now = summed(told);
    if (this.#before && now.time > this.#before.time && now.started === this.#before.started) {
      this.#push(now.time, between(this.#before, now, told));
    } else {
      this.gap();
    }
    this.#before = now;
  }

  // There is nothing to show for this second.
  gap() {
    if (this.#times.length) this.#push(Date.now() / 1000, {});
    this.#before = null;
  }

  #push(time, figures) {
    this.#times.push(time);
    if (this.#times.length > KEPT) this.#times.shift();
    for (const [key, chart] of Object.entries(this.#charts)) {
      const found = figures[key] || [];
      chart.values.forEach((line, i) => {
        line.push(found[i] ?? null);
        if (line.length > KEPT) line.shift();
        const [label] = chart.lines[i];
        const value = found[i];
        chart.items[i].textContent = value === undefined || value === null ? label : `${label} ${figure(value)}`;
        chart.items[i].parentNode.hidden = chart.lines[i][2] === "rare" && line.every((one) => one === null);
      });
      chart.plot.setData([this.#times, ...chart.values]);
    }
  }

  // Canvases know no style sheet, so colours are read from it, again whenever it changes.
  #draw() {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const axis = { stroke: color("--soft"), grid: { stroke: color("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    for (const chart of Object.values(this.#charts)) {
      if (chart.plot) chart.plot.destroy();
      const options = {
        ...size(chart.body),
        legend: { show: false },
        cursor: { drag: { setScale: false }, y: false },
        scales: { x: { time: true, range: (_, low, high) => [Math.min(low, high - 60), high] }, y: { range: (_, low, high) => [0, (high || 1) * 1.1] } },
        axes: [{ ...axis, space: 70, size: 26, values: (_, ticks) => ticks.map(clock) }, { ...axis, size: 46, space: 26, values: (_, ticks) => ticks.map((tick) => Number(tick.toPrecision(6)).toString()) }],
        series: [{}, ...chart.lines.map(([label, name]) => ({ label, stroke: color(name), width: 1.75, points: { show: false } }))],
      };
      chart.plot = new uPlot(options, [this.#times, ...chart.values], chart.body);
      chart.plot.root.setAttribute("role", "img");
      chart.plot.root.setAttribute("aria-label", `${chart.title}, the figures are below`);
    }
  }

  #resize() {
    for (const chart of Object.values(this.#charts)) chart.plot.setSize(size(chart.body));
  }
}

function size(body) {
  return { width: Math.max(160, body.clientWidth), height: 150 };
}

function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString([], { minute: "2-digit", second: "2-digit" });
}

function figure(value) {
  if (value === null) return "";
  if (value >= 100) return value.toFixed(0);
  return value >= 10 ? value.toFixed(1) : String(Number(value.toFixed(2)));
}

// Counters of all models together.
function summed(told) {
  const sum = { time: told.time_s, started: told.started_s, ok: 0, failed: 0, batches: [0, 0], stages: {}, total: null };
  for (const model of told.models) {
    sum.ok += model.num_ok;
    sum.failed += Object.values(model.errors).reduce((a, b) => a + b, 0);
    for (const [items, runs] of model.batches) {
      sum.batches[0] += items * runs;
      sum.batches[1] += runs;
    }
    for (const [stage] of STAGES) {
      const before = sum.stages[stage] || [0, 0];
      sum.stages[stage] = [before[0] + model.stages[stage].total, before[1] + model.stages[stage].count];
    }
    const { bounds, counts } = model.stages.total;
    sum.total = { bounds, counts: sum.total ? sum.total.counts.map((count, i) => count + counts[i]) : [...counts] };
  }
  return sum;
}

// Figures by chart between two sums; of what did not happen there is none.
function between(before, now, told) {
  const seconds = now.time - before.time;
  const runs = now.batches[1] - before.batches[1];
  const counts = now.total ? now.total.counts.map((count, i) => count - (before.total ? before.total.counts[i] : 0)) : [];
  const queued = told.models.reduce((sum, model) => sum + model.num_queued, 0);
  const running = told.models.reduce((sum, model) => sum + model.num_running, 0);
  const engines = told.engines.reduce((sum, engine) => sum + (engine.rss_bytes || 0), 0);
  const gpu = told.gpus.reduce((sum, one) => sum + one.memory_used_bytes, 0);
  return {
    rate: [(now.ok - before.ok) / seconds, (now.failed - before.failed) / seconds],
    latency: [0.5, 0.99].map((share) => quantile(now.total, counts, share)),
    stages: STAGES.map(([stage]) => {
      const [total, count] = now.stages[stage] || [0, 0];
      const [total0, count0] = before.stages[stage] || [0, 0];
      return count > count0 ? ((total - total0) / (count - count0)) * 1000 : null;
    }),
    queue: [queued, running],
    batch: [runs > 0.001 ? (now.batches[0] - before.batches[0]) / runs : null],
    memory: [told.front.rss_bytes / MIB, engines / MIB, told.gpus.length ? gpu / MIB : null],
  };
}

// Milliseconds, linear inside the bucket that the quantile falls into.
function quantile(histogram, counts, share) {
  const all = counts.reduce((a, b) => a + b, 0);
  if (!all) return null;
  let seen = 0;
  let lower = 0;
  for (let i = 0; i < histogram.bounds.length; i += 1) {
    if (counts[i] && seen + counts[i] >= share * all) {
      return (lower + ((histogram.bounds[i] - lower) * (share * all - seen)) / counts[i]) * 1000;
    }
    seen += counts[i];
    lower = histogram.bounds[i];
  }
  return lower * 1000;
}
