const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const unique = (values) => [...new Set(values)];

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Plotly reads some HTML in its texts; names of files and classes are never HTML.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const tone = (index) => variable(`--c${((index % 8) + 8) % 8}`);
const encoderTone = (name) => tone(data.encoders.indexOf(name));
const percent = (share) => `${Math.round(100 * share)} %`;

// Long class names break after an underscore, hyphen or slash rather than anywhere.
const breakable = (text) => text.split(/(?<=[_\-/])/).flatMap((part) => [part, element("wbr")]);

function fill(select, values, chosen) {
  select.replaceChildren(...values.map((value) => element("option", { value }, value)));
  if (values.includes(chosen)) select.value = chosen;
}
