// Curves of several jobs, one over the other.
"use strict";

const place = document.getElementById("comparison");
const jobs = [...place.querySelectorAll("tr[data-job]")].map((row) => ({ id: row.dataset.job, name: row.querySelector("a").textContent, rows: new Rows() }));
const DASHES = [undefined, [8, 4], [2, 3]]; // more jobs than colours

async function begin() {
  try {
    await Promise.all(jobs.map((job) => job.rows.load(job.id)));
  } catch (error) {
    epochd.say(error.message);
    return;
  }
  const epochs = [...new Set(jobs.flatMap((job) => job.rows.epochs()))].sort((a, b) => a - b);
  for (const figure of place.querySelectorAll("[data-metric]")) {
    const lines = jobs.map((job, index) => ({ label: job.name, dash: DASHES[Math.floor(index / 4) % 3] }));
    const curve = new Curve(figure, lines, figure.dataset.share === "yes");
    curve.set([epochs, ...jobs.map((job) => job.rows.column(figure.dataset.metric, epochs))]);
  }
}

begin();
