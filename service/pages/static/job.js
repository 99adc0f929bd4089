// A job's page: its curves grow, and its parts are renewed, as the service tells of it.
"use strict";

const place = document.getElementById("job");
const job = place.dataset.job;
const rows = new Rows();
const curves = [];

function draw() {
  const epochs = rows.epochs();
  for (const figure of place.querySelectorAll("[data-curve]")) {
    const kind = KINDS[figure.dataset.curve];
    const present = kind.series.filter(([, name], index) => index === 0 || rows.column(name, epochs).some((value) => value != null));
    let curve = curves.find((each) => each.figure === figure);
    if (curve && curve.lines.length !== present.length) curve.drop();
    if (!curve) {
      curve = new Curve(figure, [], kind.isShare);
      curves.push(curve);
    }
    curve.lines = present.map(([label]) => ({ label }));
    curve.set([epochs, ...present.map(([, name]) => rows.column(name, epochs))]);
  }
}

// Many events may come at once; a page is renewed once a second at most.
function calmly(act, milliseconds) {
  let waiting = false, again = false;
  return function calm() {
    if (waiting) { again = true; return; }
    waiting = true;
    act();
    setTimeout(() => { waiting = false; if (again) { again = false; calm(); } }, milliseconds);
  };
}

const drawSoon = calmly(() => requestAnimationFrame(draw), 100);
const renew = calmly(() => epochd.changed(), 1000);
const renewClasses = calmly(() => document.body.dispatchEvent(new CustomEvent("epoch-done")), 1500);

let source = null;
let again = 0;

function leave() {
  clearTimeout(again);
  source?.close();
  source = null;
}

function follow() {
  leave();
  if (document.hidden) return; // a browser has six connections for all its tabs
  source = new EventSource(`/jobs/${job}/stream?since=${rows.seq}`);
  source.addEventListener("metrics", (event) => {
    rows.add([JSON.parse(event.data)]);
    drawSoon();
    renew();
    renewClasses();
  });
  source.addEventListener("status", renew);
  source.addEventListener("end", () => {
    leave();
    renew();
    renewClasses();
  });
  source.addEventListener("error", () => {
    if (source?.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
    leave();
    again = setTimeout(begin, 5000);
  });
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) leave();
  else begin();
});

document.addEventListener("htmx:after:swap", () => {
  // It was retried, resumed or extended: there is something to follow again.
  if (document.getElementById("now")?.dataset.live === "yes" && source === null) begin();
});

let isBeginning = false;

async function begin() {
  if (isBeginning) return;
  isBeginning = true;
  try {
    const isOver = await rows.load(job);
    draw();
    if (!isOver) follow();
  } catch (error) {
    epochd.say(error.message); // what is gone, or needs a key, is not asked for again
    if (!error.status || error.status >= 500) again = setTimeout(begin, 5000);
  } finally {
    isBeginning = false;
  }
}

place.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-predicted]");
  if (!button) return;
  const { label, predicted } = button.dataset;
  const shown = document.getElementById("pictures");
  const title = epochd.make("h3", {}, label === predicted ? `${label}, recognised` : `${label} taken for ${predicted}`);
  shown.hidden = false;
  shown.replaceChildren(title, epochd.make("p", {}, "…"));
  try {
    const query = new URLSearchParams({ label, predicted, limit: 24 });
    const found = await epochd.ask(`/jobs/${job}/report/pictures?${query}`);
    const items = found.data.map((each) => epochd.make("li", {},
      each.url ? epochd.make("img", { src: each.url, alt: `Test picture ${each.index}, ${each.label}`, loading: "lazy" }) : "",
      `${(100 * each.probability).toFixed(1)} % ${each.predicted}`));
    shown.replaceChildren(title, epochd.make("p", { className: "muted" }, "The surest first."), epochd.make("ul", { className: "pictures" }, ...items));
  } catch (error) {
    shown.replaceChildren(title, epochd.make("p", {}, error.message));
  }
  shown.scrollIntoView({ block: "nearest" });
});

begin();
