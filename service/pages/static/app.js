// What all pages share: asking the service, saying what it refused, and buttons that ask for something.
"use strict";

const epochd = {
  /** The answer's JSON (null without a body). Throws an Error whose message is the service's sentence. */
  async ask(address, options = {}) {
    let answer;
    try {
      answer = await fetch(address, { ...options, headers: { Accept: "application/json", ...options.headers } });
    } catch {
      throw new Error("The service does not answer. Is it running?");
    }
    if (answer.status === 401) {
      location.assign(`/ui/key?next=${encodeURIComponent(location.pathname + location.search)}`);
      throw new Error("A key is needed.");
    }
    const text = await answer.text();
    let body = null;
    try { body = text ? JSON.parse(text) : null; } catch { body = null; }
    if (!answer.ok) {
      const error = new Error((body && body.detail) || `The service answered with ${answer.status}.`);
      error.problem = body;
      error.status = answer.status;
      throw error;
    }
    return body;
  },

  post(address, body) {
    return this.ask(address, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body ?? {}) });
  },

  say(sentence) {
    const toast = document.getElementById("toast");
    toast.textContent = sentence;
    toast.hidden = false;
    clearTimeout(this.saying);
    this.saying = setTimeout(() => { toast.hidden = true; }, 8000);
  },

  /** An element with text and children; never HTML from a text. */
  make(name, properties = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key in made && !key.startsWith("aria")) made[key] = value;
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  },

  changed() { document.body.dispatchEvent(new CustomEvent("job-changed")); },
};

async function asked(element, method, address, body) {
  if (element.dataset.confirm && !confirm(element.dataset.confirm)) return;
  if (element.getAttribute("aria-busy") === "true") return;
  element.setAttribute("aria-busy", "true"); // not disabled: that would take the focus away
  try {
    if (method === "DELETE") await epochd.ask(address, { method });
    else await epochd.post(address, body);
    if (element.dataset.then) location.assign(element.dataset.then);
    else epochd.changed();
  } catch (error) {
    epochd.say(error.message);
  } finally {
    element.removeAttribute("aria-busy");
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-post], button[data-delete]");
  if (!button) return;
  event.preventDefault();
  const { post, json } = button.dataset;
  if (post) asked(button, "POST", post, json && JSON.parse(json));
  else asked(button, "DELETE", button.dataset.delete);
});

document.addEventListener("submit", (event) => {
  const form = event.target.closest("form[data-post]");
  if (!form) return;
  event.preventDefault();
  const fields = [...new FormData(form)].map(([name, value]) => [name, form.elements[name].type === "number" ? Number(value) : value]);
  asked(form, "POST", form.dataset.post, Object.fromEntries(fields));
});

// Ticked jobs stay ticked while the table is renewed, and on other pages of it.
const ticks = {
  chosen: new Set(JSON.parse(sessionStorage.getItem("ticked") || "[]")),
  keep() {
    sessionStorage.setItem("ticked", JSON.stringify([...this.chosen]));
    this.show();
  },
  show() {
    document.querySelectorAll("input[name=jobs]").forEach((box) => { box.checked = this.chosen.has(box.value); });
    const button = document.getElementById("compare-button"), untick = document.getElementById("untick");
    if (!button) return;
    const count = this.chosen.size;
    button.disabled = count < Number(button.dataset.needs) || count > Number(button.dataset.most);
    button.textContent = count ? `Compare the ${count} ticked` : "Compare the ticked";
    untick.hidden = count === 0;
  },
};
document.addEventListener("change", (event) => {
  if (!event.target.matches("input[name=jobs]")) return;
  if (event.target.checked) ticks.chosen.add(event.target.value);
  else ticks.chosen.delete(event.target.value);
  ticks.keep();
});
document.addEventListener("click", (event) => {
  if (event.target.id !== "untick") return;
  ticks.chosen.clear();
  ticks.keep();
});
document.addEventListener("submit", (event) => {
  if (event.target.id !== "compare") return;
  event.preventDefault();
  location.assign(`/ui/compare?jobs=${[...ticks.chosen].join(",")}`);
});
document.addEventListener("htmx:after:swap", () => ticks.show());
document.addEventListener("DOMContentLoaded", () => ticks.show());

// What somebody has unfolded stays so when its part of the page is renewed.
htmx.registerExtension("keep-open", {
  htmx_before_morph_attr: (element, detail) => !(element.matches("details") && detail.attrName === "open"),
});

// What is folded away is only asked for when somebody unfolds it.
document.addEventListener("toggle", (event) => {
  const wanted = event.target.matches?.("details[data-load][open]") && document.querySelector(event.target.dataset.load);
  if (wanted?.hidden) {
    wanted.hidden = false;
    wanted.dispatchEvent(new CustomEvent("load-now"));
  }
}, true);
