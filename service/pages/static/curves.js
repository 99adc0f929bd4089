// Curves over epochs, drawn by uPlot: one plot for each figure, which grows while rows come.
"use strict";

const KINDS = {
  loss: { series: [["Train", "train_loss"], ["Test", "test_loss"]] },
  accuracy: { series: [["Accuracy", "test_accuracy"], ["F1", "test_f1"], ["Top 5", "test_top5_accuracy"]], isShare: true },
  numbers: { series: [["R²", "test_r2"], ["Mean absolute error", "test_mae"]] },
  rate: { series: [["Learning rate", "learning_rate"]] },
  throughput: { series: [["Pictures a second", "samples_per_second"]] },
};
const COLOURS = ["--curve-1", "--curve-2", "--curve-3", "--curve-4"];

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function written(value, isShare) {
  if (value == null) return "–";
  return isShare ? `${(100 * value).toFixed(2)} %` : Number(value.toPrecision(4)).toString();
}

/** One figure. `lines`: [{label, values(row)}]; the x axis is the epoch. */
class Curve {
  constructor(figure, lines, isShare) {
    this.figure = figure;
    this.lines = lines;
    this.isShare = isShare;
    this.place = epochd.make("div", { className: "plot", role: "img" });
    this.said = epochd.make("p", { className: "said" });
    figure.append(this.place, this.said);
    new ResizeObserver(() => this.fit()).observe(this.place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { this.drop(); this.draw(); });
  }

  drop() {
    this.plot?.destroy();
    this.plot = null;
  }

  width() { return Math.max(this.place.clientWidth, 200); }
  height() { return this.figure.classList.contains("small") ? 160 : 240; }
  fit() { if (this.plot && this.plot.width !== this.width()) this.plot.setSize({ width: this.width(), height: this.height() }); }

  /** `data`: uPlot's, epochs first. */
  set(data) {
    this.data = data;
    this.draw();
  }

  draw() {
    if (!this.data) return;
    this.figure.dataset.points = this.data[0].length;
    if (this.plot) this.plot.setData(this.data);
    else this.plot = new uPlot(this.options(), this.data, this.place);
    const last = this.data[0].length - 1;
    const now = this.lines.map((line, index) => [line.label, this.data[index + 1][last]]);
    const shown = now.map(([label, value]) => `${label} ${written(value, this.isShare)}`).join(" · ");
    const said = last < 0 ? "No epoch is done yet." : `Epoch ${this.data[0][last]}: ${shown}`;
    this.said.textContent = said;
    this.place.setAttribute("aria-label", `${this.figure.querySelector("figcaption").textContent}. ${said}`);
  }

  options() {
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { stroke: colour("--grid"), width: 1 } };
    const values = (_, ticks) => ticks.map((tick) => (this.isShare ? `${+(100 * tick).toFixed(2)} %` : Number(tick.toPrecision(6)).toString()));
    const epochs = (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? String(tick) : ""));
    return {
      width: this.width(),
      height: this.height(),
      scales: { x: { time: false } },
      legend: { live: false },
      cursor: { points: { size: 6 } },
      axes: [{ ...axis, values: epochs }, { ...axis, values, size: 62 }],
      series: [
        { label: "Epoch" },
        ...this.lines.map((line, index) => ({
          label: line.label,
          stroke: colour(COLOURS[index % COLOURS.length]),
          width: 2,
          dash: line.dash,
          points: { show: (plot) => plot.data[0].length < 60, size: 5 },
        })),
      ],
      hooks: { setCursor: [(plot) => this.point(plot.cursor.idx)] },
    };
  }

  point(index) {
    if (index == null) return;
    const values = this.lines.map((line, at) => `${line.label} ${written(this.data[at + 1][index], this.isShare)}`);
    this.said.textContent = `Epoch ${this.data[0][index]}: ${values.join(" · ")}`;
  }
}

/** A job's rows, the newest of each epoch. */
class Rows {
  constructor() {
    this.byEpoch = new Map();
    this.seq = 0;
  }

  add(rows) {
    for (const row of rows) {
      if (row.seq <= this.seq) continue;
      this.seq = row.seq;
      // What came behind it was forgotten: the training went on from there, or began anew.
      for (const epoch of this.byEpoch.keys()) if (epoch > row.epoch) this.byEpoch.delete(epoch);
      this.byEpoch.set(row.epoch, row);
    }
  }

  epochs() { return [...this.byEpoch.keys()].sort((a, b) => a - b); }
  column(name, epochs) { return epochs.map((epoch) => this.byEpoch.get(epoch)?.[name] ?? null); }

  /** All rows that there are by now. */
  async load(job) {
    let page;
    do {
      page = await epochd.ask(`/jobs/${job}/metrics?since=${this.seq}&limit=1000`);
      this.add(page.data);
    } while (page.data.length === 1000);
    return page.terminal;
  }
}
