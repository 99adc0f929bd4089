// The fields of a form that is made from a JSON schema: one for each value.
// A field says only what differs from its default, and takes a value back, which may have been written by hand meanwhile.
"use strict";

const DEFINED = {}; // what the schema's $refs point at

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
const idOf = (pointer) => `spec${pointer.slice(1).replaceAll("/", "-")}`;

/** What stands between backticks is code. */
function prose(text) {
  return text.split("`").map((part, index) => (index % 2 ? epochd.make("code", {}, part) : part));
}

/** JSON in lines that are not too long. */
function pretty(value, indent = "") {
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const [begin, end] = Array.isArray(value) ? "[]" : "{}", further = `${indent}  `;
  const parts = Object.entries(value).map(([key, each]) => (Array.isArray(value) ? "" : `${JSON.stringify(key)}: `) + pretty(each, further));
  const line = begin + parts.join(", ") + end;
  if (indent.length + line.length <= 64 && !line.includes("\n")) return line;
  return `${begin}\n${parts.map((each) => further + each).join(",\n")}\n${indent}${end}`;
}

function resolved(schema) {
  if (!schema.$ref) return schema;
  const { $ref, ...more } = schema;
  return { ...DEFINED[$ref.split("/").pop()], ...more };
}

/** The names that choose a part of a union. */
function namesOf(part) {
  const { name } = part.properties;
  return name.const ? [name.const] : name.enum;
}

/** One value with its label, what it is about, and what is wrong with it. */
class Field {
  constructor(name, schema, pointer, control) {
    Object.assign(this, { name, schema, pointer, control });
    const id = idOf(pointer);
    control.id = id;
    control.setAttribute("aria-describedby", `${id}-about`);
    this.label = epochd.make("label", { htmlFor: id }, name);
    this.about = epochd.make("p", { className: "about", id: `${id}-about` }, ...prose(schema.description ?? ""));
    this.wrong = epochd.make("p", { className: "wrong", id: `${id}-wrong`, hidden: true });
    this.element = epochd.make("div", { className: "field" }, ...this.arranged());
    this.reset();
  }

  arranged() { return [this.label, this.control, this.about, this.wrong]; }
  reset() { this.write(this.schema.default ?? null); }
  *every() { yield this; }

  /** Undefined where it is as it would be anyway. What cannot be read is added to the problems. */
  value(problems) {
    let value;
    try {
      value = this.read();
    } catch (error) {
      problems.push({ pointer: this.pointer, detail: error.message });
    }
    if (same(value, this.schema.default)) value = undefined;
    this.element.classList.toggle("changed", value !== undefined);
    return value;
  }

  /** A value that it cannot show is added to what is lost. */
  set(value, lost) {
    const isTaken = value === null ? this.schema.default === null : this.write(value);
    if (value === null && isTaken) this.write(null);
    if (!isTaken) lost.push(this.pointer);
  }

  show(problem) {
    this.wrong.textContent = problem ?? "";
    this.wrong.hidden = !problem;
    this.control.setAttribute("aria-invalid", String(Boolean(problem)));
    this.control.setAttribute("aria-describedby", problem ? `${this.about.id} ${this.wrong.id}` : this.about.id);
  }
}

class TextField extends Field {
  constructor(name, schema, pointer) {
    const control = epochd.make("input", { type: "text", autocomplete: "off", spellcheck: false, placeholder: schema.default === null ? "unset" : "" });
    if (schema.maxLength) control.maxLength = schema.maxLength;
    if (schema.pattern) control.pattern = schema.pattern;
    super(name, schema, pointer, control);
  }

  read() { return this.control.value.trim() || undefined; }
  write(value) {
    this.control.value = value ?? "";
    return value === null || typeof value === "string";
  }
}

class NumberField extends Field {
  constructor(name, schema, pointer) {
    const isWhole = schema.type === "integer";
    const control = epochd.make("input", { type: "number", step: isWhole ? "1" : "any", placeholder: schema.default === null ? "unset" : "" });
    const least = schema.minimum ?? schema.exclusiveMinimum, most = schema.maximum ?? schema.exclusiveMaximum;
    if (least !== undefined) control.min = least;
    if (most !== undefined) control.max = Math.min(most, Number.MAX_SAFE_INTEGER);
    super(name, schema, pointer, control);
  }

  read() {
    if (this.control.validity.badInput) throw new Error("This is not a number.");
    if (this.control.value === "") return undefined;
    const value = Number(this.control.value), { minimum, maximum, exclusiveMinimum, exclusiveMaximum } = this.schema;
    if (this.schema.type === "integer" && !Number.isSafeInteger(value)) {
      throw new Error(Number.isInteger(value) ? "A number as long as this can only be written by hand." : "This should be a whole number.");
    }
    if (value < minimum) throw new Error(`This should be at least ${minimum}.`);
    if (value > maximum) throw new Error(`This should be at most ${maximum}.`);
    if (value <= exclusiveMinimum) throw new Error(`This should be greater than ${exclusiveMinimum}.`);
    if (value >= exclusiveMaximum) throw new Error(`This should be less than ${exclusiveMaximum}.`);
    return value;
  }

  write(value) {
    this.control.value = value ?? "";
    return value === null || (typeof value === "number" && (!Number.isInteger(value) || Number.isSafeInteger(value)));
  }
}

class SwitchField extends Field {
  constructor(name, schema, pointer) { super(name, schema, pointer, epochd.make("input", { type: "checkbox" })); }
  arranged() { return [epochd.make("div", { className: "switch" }, this.control, this.label), this.about, this.wrong]; }
  read() { return this.control.checked; }
  write(value) {
    this.control.checked = value === true;
    return typeof value === "boolean" || value === null;
  }
}

class SelectField extends Field {
  constructor(name, schema, pointer) {
    const options = schema.enum.map((each) => epochd.make("option", { value: each }, each));
    if (schema.default === null) options.unshift(epochd.make("option", { value: "" }, "unset"));
    super(name, schema, pointer, epochd.make("select", {}, ...options));
  }

  read() { return this.control.value || undefined; }
  write(value) {
    const isKnown = value === null || this.schema.enum.includes(value);
    if (isKnown) this.control.value = value ?? "";
    return isKnown;
  }
}

/** Which pictures: of those that there are, by how far they are. */
class DatasetField extends Field {
  constructor(name, schema, pointer) {
    const groups = [["Ready", ["ready"]], ["Being prepared", ["uploaded", "preparing"]], ["Prepared when first asked for", ["available"]], ["Invalid", ["invalid"]]];
    const known = JSON.parse(document.getElementById("known-datasets").textContent);
    const options = (statuses) => [...new Set(known.filter((each) => statuses.includes(each.status)).map((each) => each.name))].map((each) => epochd.make("option", {}, each));
    const made = groups.map(([label, statuses]) => epochd.make("optgroup", { label }, ...options(statuses))).filter((each) => each.children.length);
    super(name, schema, pointer, epochd.make("select", {}, ...made));
  }

  read() { return this.control.value; }
  write(value) {
    if (typeof value !== "string") return false;
    if (![...this.control.options].some((each) => each.value === value)) this.control.append(epochd.make("option", {}, value));
    this.control.value = value;
    return true;
  }
}

/** Numbers with commas between them, or one of a few words. */
class ListField extends TextField {
  constructor(name, schema, pointer, words) {
    super(name, schema, pointer);
    this.words = words;
    this.reset();
  }

  read() {
    const text = this.control.value.trim();
    if (!text) return undefined;
    if (this.words?.includes(text)) return text;
    const numbers = text.replace(/^\[|\]$/g, "").split(",").map((each) => each.trim()).filter(Boolean).map(Number);
    if (numbers.some((each) => !Number.isFinite(each))) throw new Error(`Write numbers with commas between them, such as 64, 32${this.words?.length ? `; or ${this.words.join(", ")}` : ""}.`);
    return numbers;
  }

  write(value) {
    const isNumbers = Array.isArray(value) && value.every((each) => typeof each === "number");
    if (value !== null && !isNumbers && !this.words?.includes(value)) return false;
    this.control.value = isNumbers ? value.join(", ") || "[]" : value ?? "";
    return true;
  }
}

/** A line for each: `key=value`. */
class PairsField extends Field {
  constructor(name, schema, pointer) {
    super(name, schema, pointer, epochd.make("textarea", { rows: 2, spellcheck: false, placeholder: "team=a" }));
    this.about.append("; a line for each.");
  }

  read() {
    const lines = this.control.value.split("\n").filter((line) => line.trim());
    if (lines.some((line) => !line.includes("="))) throw new Error("Write each as key=value, in a line of its own.");
    const pairs = lines.map((line) => [line.slice(0, line.indexOf("=")).trim(), line.slice(line.indexOf("=") + 1).trim()]);
    return pairs.length ? Object.fromEntries(pairs) : undefined;
  }

  write(value) {
    const pairs = Object.entries(value ?? {});
    this.control.value = pairs.map((pair) => pair.join("=")).join("\n");
    return pairs.every(([key, text]) => typeof text === "string" && !/[=\n]/.test(key) && !text.includes("\n"));
  }
}
