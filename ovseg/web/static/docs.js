// Shows openapi.json as a page with a form for each operation; nothing is loaded from another host.

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

const answer = await fetch("openapi.json");
const api = await answer.json();
const resolve = (schema) => (schema?.$ref ? api.components.schemas[schema.$ref.split("/").at(-1)] : schema) || {};

function typeOf(schema) {
  if (schema.anyOf) return schema.anyOf.map(typeOf).filter((name) => name !== "null").join(" or ");
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.contentMediaType || schema.format === "binary") return "file";
  return schema.type === "array" ? `${typeOf(schema.items)}[]` : schema.type;
}

function table(title, schema) {
  const rows = Object.entries(schema.properties || {}).map(([name, field]) =>
    make(
      "tr",
      {},
      make("td", {}, make("code", { textContent: name })),
      make("td", { textContent: typeOf(field) }),
      make("td", { textContent: (schema.required?.includes(name) ? "" : "optional. ") + (field.description || "") }),
    ),
  );
  return rows.length ? [make("h2", { textContent: title }), make("table", {}, make("tbody", {}, ...rows))] : [];
}

function tryForm(path, method, schema) {
  const output = make("pre", { hidden: true });
  const fields = Object.entries(schema.properties || {}).flatMap(([name, field]) => {
    const input = make("input", { name, id: `${path}-${name}`, type: typeOf(field) === "file" ? "file" : "text" });
    return [make("label", { htmlFor: input.id, textContent: name }), input];
  });
  const form = make("form", { className: "try" }, ...fields, make("button", { className: "small", textContent: "Send" }));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const body = new FormData(form);
    for (const [name, value] of [...body]) if (value === "" || value.size === 0) body.delete(name);
    output.hidden = false;
    output.textContent = "…";
    const result = await fetch(path.slice(1), method === "get" ? {} : { method, body });
    output.textContent = `${result.status}\n${JSON.stringify(await result.json(), null, 2).slice(0, 20000)}`;
  });
  return [make("h2", { textContent: "Try it" }), form, output];
}

function curl(path, method, schema) {
  const fields = Object.entries(schema.properties || {})
    .filter(([name]) => ["image", "words"].includes(name))
    .map(([name]) => (name === "image" ? "-F image=@photo.jpg" : `-F ${name}='sky, tree, person'`));
  return make("pre", { textContent: ["curl", ...fields, new URL(path.slice(1), location.href)].join(" ") });
}

function operation(path, method, details) {
  const body = resolve(details.requestBody?.content?.["multipart/form-data"]?.schema);
  const problems = Object.entries(details.responses).filter(([status]) => status !== "200" && status !== "422");
  const result = resolve(details.responses["200"]?.content?.["application/json"]?.schema);
  return make(
    "section",
    { className: "panel" },
    make("h1", {}, make("span", { className: "method", textContent: method.toUpperCase() }), make("code", { textContent: path })),
    make("p", { textContent: `${details.summary}. ${details.description || ""}` }),
    curl(path, method, body),
    ...table("Form fields (multipart/form-data)", body),
    ...table("Answer (JSON)", result),
    ...table("segments[]", resolve(result.properties?.segments?.items)),
    ...table("Errors", {
      properties: Object.fromEntries(problems.map(([status, one]) => [status, { type: "JSON", description: one.description }])),
      required: problems.map(([status]) => status),
    }),
    ...tryForm(path, method, body),
  );
}

const sections = Object.entries(api.paths).flatMap(([path, methods]) =>
  Object.entries(methods).map(([method, details]) => operation(path, method, details)),
);
document.getElementById("api").replaceChildren(...sections);
