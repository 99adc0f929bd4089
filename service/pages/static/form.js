// A form made from a JSON schema: a frame for each part, a choice for each union, a field for each value.
"use strict";

const LAYERS = [
  { name: "conv2d", channels: 16, padding: "same" }, { name: "relu" }, { name: "max_pool" },
  { name: "flatten" }, { name: "linear", features: 64 }, { name: "relu" }, { name: "linear" },
];

/** What has too many forms for a form: JSON, or YAML as the service reads it. */
class DeepField extends Field {
  constructor(name, schema, pointer) {
    super(name, schema, pointer, epochd.make("textarea", { rows: 3, spellcheck: false, className: "code" }));
    this.about.append(" (JSON or YAML)");
    const kinds = (schema.items?.oneOf ?? [schema.items ?? {}]).map(resolved).filter((each) => each.properties);
    if (kinds.length) this.element.append(epochd.make("details", {}, epochd.make("summary", {}, "What can be said"), ...kinds.map(described)));
    this.control.addEventListener("input", () => this.typed());
  }

  reset() { this.write(this.schema.default ?? (this.name === "layers" ? LAYERS : null)); }

  read() {
    if (this.problem) throw new Error(this.problem);
    return this.parsed;
  }

  write(value) {
    this.parsed = value === null || same(value, []) ? undefined : value;
    this.problem = null;
    this.control.value = this.parsed === undefined ? "" : pretty(this.parsed);
    this.control.rows = Math.min(Math.max(this.control.value.split("\n").length, 3), 16);
    return true;
  }

  typed() {
    readStructure(this, this.control.value, () => this.control.dispatchEvent(new Event("change", { bubbles: true })));
  }
}

/** Reads JSON at once, and YAML a moment later, into `parsed` or `problem`; then tells. */
function readStructure(place, text, tell) {
  clearTimeout(place.reading);
  place.problem = null;
  try {
    place.parsed = text.trim() ? JSON.parse(text) : undefined;
  } catch {
    place.problem = "This is being read …";
    place.reading = setTimeout(async () => {
      let found, problem = null;
      try {
        found = await epochd.ask("/ui/new/yaml", { method: "POST", headers: { "Content-Type": "text/yaml" }, body: text });
      } catch (error) {
        problem = error.message;
      }
      if (place.problem === null || place.control.value !== text) return;
      Object.assign(place, { parsed: found, problem });
      tell();
    }, 400);
  }
}

/** A line about one kind of part, with its fields. */
function described(part) {
  const fields = Object.entries(part.properties).filter(([name]) => name !== "name");
  const names = part.properties.name && namesOf(part) ? namesOf(part) : [];
  const listed = fields.map(([name, each]) => epochd.make("li", {}, epochd.make("code", {}, name), ": ", ...prose(each.description ?? ""), each.default === undefined || each.default === null ? "" : ` (${JSON.stringify(each.default)})`));
  return epochd.make("div", { className: "kind" }, epochd.make("strong", {}, names.join(", ") || part.title), " ", ...prose(part.description ?? ""), epochd.make("ul", {}, ...listed));
}

/** The fields of an object. */
class Part {
  constructor(schema, pointer, without = []) {
    this.pointer = pointer;
    this.fields = Object.entries(schema.properties)
      .filter(([name]) => !without.includes(name))
      .map(([name, each]) => [name, fieldOf(name, each, `${pointer}/${name}`)]);
    this.element = epochd.make("div", { className: "part" }, ...this.fields.map(([, each]) => each.element));
  }

  value(problems) {
    const found = this.fields.map(([name, each]) => [name, each.value(problems)]).filter(([, value]) => value !== undefined);
    return found.length ? Object.fromEntries(found) : undefined;
  }

  set(value, lost) {
    if (value === null || typeof value !== "object" || Array.isArray(value)) {
      lost.push(this.pointer);
      return;
    }
    const fields = Object.fromEntries(this.fields);
    for (const [name, each] of Object.entries(value)) {
      if (Object.hasOwn(fields, name)) fields[name].set(each, lost);
      else lost.push(`${this.pointer}/${name}`);
    }
  }

  reset() { this.fields.forEach(([, each]) => each.reset()); }
  *every() { for (const [, each] of this.fields) yield* each.every(); }
}

/** An object with a frame around its fields. */
class Framed extends Part {
  constructor(name, schema, pointer) {
    super(schema, pointer);
    this.element = epochd.make("fieldset", {}, epochd.make("legend", {}, name), this.element);
  }
}

/** An object or nothing. */
class OptionalPart extends SwitchField {
  constructor(name, schema, part, pointer) {
    super(name, { description: schema.description, default: false }, pointer);
    this.part = new Part(part, pointer);
    this.element = epochd.make("div", { className: "choice" }, this.element, this.part.element);
    this.control.addEventListener("change", () => this.fit());
    this.fit();
  }

  fit() { this.part.element.hidden = !this.control.checked; }
  value(problems) {
    const isOn = super.value([]) === true;
    return isOn ? this.part.value(problems) ?? {} : undefined;
  }

  set(value, lost) {
    this.control.checked = value !== null;
    if (value !== null) this.part.set(value, lost);
    this.fit();
  }

  reset() {
    super.reset();
    this.part?.reset();
    if (this.part) this.fit();
  }

  *every() {
    yield this;
    if (this.control.checked) yield* this.part.every();
  }
}

/** One of several parts, chosen by its name. */
class Choice extends Field {
  constructor(name, schema, pointer) {
    const kinds = schema.oneOf.map(resolved);
    const few = kinds.filter((each) => namesOf(each).length < 9), many = kinds.filter((each) => !few.includes(each));
    const options = (parts) => parts.flatMap(namesOf).map((each) => epochd.make("option", {}, each));
    const control = epochd.make("select", {}, ...options(few), ...many.map((each) => epochd.make("optgroup", { label: `of ${each.title.toLowerCase()}` }, ...options([each]))));
    const usual = kinds.find((each) => each.properties.name.default).properties.name.default;
    super(name, { description: schema.description, default: usual }, pointer, control);
    this.kinds = kinds;
    this.parts = new Map();
    this.place = epochd.make("div", { className: "parts" });
    this.element = epochd.make("div", { className: "choice" }, this.element, this.place);
    control.addEventListener("change", () => this.fit());
    this.fit();
  }

  read() { return this.control.value; }
  write(value) {
    const isKnown = [...this.control.options].some((each) => each.value === value);
    if (isKnown) this.control.value = value;
    return isKnown;
  }

  kind() { return this.kinds.find((each) => namesOf(each).includes(this.control.value)); }

  part() {
    const kind = this.kind();
    if (!this.parts.has(kind)) this.parts.set(kind, new Part(kind, this.pointer, ["name"]));
    return this.parts.get(kind);
  }

  fit() {
    const about = this.kind().description.replaceAll("\n", " ");
    this.about.replaceChildren(...prose(about));
    this.place.replaceChildren(this.part().element);
  }

  value(problems) {
    const name = super.value(problems), more = this.part().value(problems);
    return name === undefined && more === undefined ? undefined : { ...(name && { name }), ...more };
  }

  set(value, lost) {
    const { name = this.schema.default, ...more } = value ?? {};
    if (value === null || typeof value !== "object" || !this.write(name)) {
      lost.push(this.pointer);
      return;
    }
    this.fit();
    this.part().set(more, lost);
  }

  reset() {
    super.reset();
    this.parts?.forEach((each) => each.reset());
    if (this.parts) this.fit();
  }

  *every() {
    yield this;
    yield* this.part().every();
  }
}

function fieldOf(name, schema, pointer) {
  if (pointer === "#/dataset/name") return new DatasetField(name, schema, pointer);
  if (schema.oneOf) return new Choice(name, schema, pointer);
  const kinds = (schema.anyOf ?? [schema]).map(resolved).filter((each) => each.type !== "null");
  const { description = kinds[0].description, default: usual } = schema;
  const only = kinds.length === 1 ? { ...kinds[0], description, default: usual } : null;
  if (only?.properties) return usual === null ? new OptionalPart(name, only, kinds[0], pointer) : new Framed(name, only, pointer);
  if (only?.enum) return new SelectField(name, only, pointer);
  if (only?.type === "boolean") return new SwitchField(name, only, pointer);
  if (only?.type === "integer" || only?.type === "number") return new NumberField(name, only, pointer);
  if (only?.type === "string") return new TextField(name, only, pointer);
  if (only?.additionalProperties) return new PairsField(name, only, pointer);
  const isNumbers = (each) => each.type === "array" && ["integer", "number"].includes((each.items ?? each.prefixItems?.[0])?.type);
  if (kinds.some(isNumbers) && kinds.every((each) => isNumbers(each) || each.const)) {
    return new ListField(name, { ...schema, description }, pointer, kinds.map((each) => each.const).filter(Boolean));
  }
  return new DeepField(name, only ?? schema, pointer);
}
