const COLORS = 12;
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

function drawn(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Plotly reads some HTML in its texts; names of files and classes are never HTML.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const extra = (text) => `<extra>${plain(text).replace(/%/g, "&#37;")}</extra>`;
const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const tone = (index) => variable(`--c${((index % COLORS) + COLORS) % COLORS}`);
const encoderNumber = new Map(data.encoders.map((name, index) => [name, index]));
const encoderTone = (name) => tone(encoderNumber.get(name) ?? 0);
// Of many draws, a tile's class is the one that most of them gave, its probability their share.
const isVote = (protocol) => String(protocol).startsWith("fewshot:");
const percent = (share) => `${Math.round(100 * share)} %`;
const fixed = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const signed = (value) => (value === null ? "–" : (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3));
const pValue = (value) => (value < 0.001 ? "< 0.001" : value.toFixed(3));
const faded = (hex, share) => `rgba(${[1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)).join(",")},${share})`;
const metricName = (metric) => data.metric_names[metric] ?? metric;
const inWords = (metric) => data.metric_words[metric] ?? metricName(metric);
const arrow = (metric) => (data.higher[metric] ? "↑" : "↓");

// A protocol with many settings, for axes: its name, and that there are settings.
const brief = (condition) => (condition.length > 28 ? condition.replace(/\?[^,]*/, "?…") : condition);

// In tables its settings stand small behind its name, the first two lines of them.
function settled(condition) {
  if (condition.length <= 28 || !condition.includes("?")) return [condition];
  const [, name, settings, share] = /^([^?]*)([^,]*)(.*)$/.exec(condition);
  return [name, element("span", { class: "version settings", title: settings.slice(1).replaceAll("&", "\n") }, ...breakable(settings.slice(1))), share.replace(/^, /, "")];
}

// Long names break after an underscore, hyphen or slash rather than anywhere.
const breakable = (text) => text.split(/(?<=[_\-/?&])/).flatMap((part) => [part, element("wbr")]);

function encoderLabel(name) {
  return element("span", { class: "encoder" }, element("span", { class: `dot c${(encoderNumber.get(name) ?? 0) % COLORS}`, "aria-hidden": "true" }), name.length <= 28 ? element("span", { class: "whole" }, name) : element("span", {}, ...breakable(name)));
}

function fill(select, values, chosen, names = values) {
  select.replaceChildren(...values.map((value, i) => element("option", { value }, names[i])));
  if (values.includes(chosen)) select.value = chosen;
}

const legendOf = (names) => names.map((name) => element("li", {}, encoderLabel(name)));

// The highest encoders of a figure that cannot hold all, in the order of the page; score(name) is null for none.
function leading(names, score, most) {
  const scored = names.filter((name) => score(name) !== null && score(name) !== undefined);
  const kept = new Set([...scored].sort((a, b) => score(b) - score(a)).slice(0, most));
  return scored.filter((name) => kept.has(name));
}

const leftOut = (shown, total) => (shown < total ? ` The leading ${shown} of ${total} encoders are drawn.` : "");
