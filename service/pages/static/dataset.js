// A dataset's page: a few pictures of each class, fetched when they come into sight.
"use strict";

const A_FEW = 8, SOME = 24; // of each class; where there are no classes

const sights = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    sights.unobserve(entry.target);
    fetchPictures(entry.target);
  }
}, { rootMargin: "600px" });

async function fetchPictures(sample) {
  const samples = sample.closest("#samples"), list = sample.querySelector("ul");
  const label = sample.dataset.class, split = document.getElementById("split").value;
  const query = new URLSearchParams({ split, limit: label ? A_FEW : SOME });
  if (label) query.set("class", label);
  try {
    const found = await epochd.ask(`${samples.dataset.address}&${query}`);
    if (split !== document.getElementById("split").value) return;
    list.replaceChildren(...found.data.map((each) => pictured(each, label)));
    if (!found.data.length) list.replaceChildren(epochd.make("li", {}, "None."));
  } catch (error) {
    list.replaceChildren(epochd.make("li", {}, error.message));
  }
}

function pictured(each, label) {
  const numbers = Object.entries(each.targets ?? {}).map(([name, value]) => `${name} ${value === null ? "–" : Number(value.toPrecision(4))}`).join(", ");
  const image = epochd.make("img", { alt: label ? `${label}, number ${each.index}` : `Number ${each.index}`, loading: "lazy", src: each.url });
  return epochd.make("li", {}, image, numbers);
}

function begin() {
  const samples = document.getElementById("samples");
  if (!samples || samples.dataset.begun) return;
  samples.dataset.begun = "yes";
  const every = samples.querySelectorAll(".sample");
  every.forEach((each) => sights.observe(each));
  document.getElementById("split").addEventListener("change", () => every.forEach((each) => {
    sights.unobserve(each);
    sights.observe(each); // tells anew whether it is in sight
  }));
}

document.addEventListener("htmx:after:swap", begin);
begin();
