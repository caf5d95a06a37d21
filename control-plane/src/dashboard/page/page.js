// The page: asks for the data again and again while somebody sees it, and shows it. Whatever comes from the mesh is written as text.

import { Graph } from "./graph.js";
import { Table, element, facts, spark } from "./tables.js";

const $ = (id) => document.getElementById(id);
const none = "–";
/** More nodes than this are shown by namespace, unless it is asked for otherwise. */
const MANY = 60;
const LEAST_WAIT = 1000;

const number = (n) => n.toLocaleString("en", { maximumFractionDigits: n < 10 ? 1 : 0 });
const rate = (n) => (n > 0 && n < 0.1 ? "< 0.1/s" : `${number(n)}/s`);
const millis = (n) => (n === null ? none : n < 1000 ? `${number(n)} ms` : `${number(n / 1000)} s`);
const bytes = (n) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const at = n > 0 ? Math.min(units.length - 1, Math.floor(Math.log2(n) / 10)) : 0;
  return `${number(n / 1024 ** at)} ${units[at]}`;
};
const share = (part, all) => (all > 0 ? `${number((part / all) * 100)} %` : none);
const clock = (seconds) => new Date(seconds * 1000).toISOString().replace("T", " ").slice(0, 19) + "Z";
const secured = { mtls: "mutual TLS", mixed: "some in the clear", plaintext: "in the clear" };
const kinds = { service: "service", workload: "workload behind no service", plaintext: "without a sidecar", outside: "outside of the mesh", namespace: "namespace" };

/** How long it is until then, or since then. */
function span(seconds) {
  const s = Math.abs(seconds);
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}

let data = null;
let paused = false;
let opened = new Set();

/** What the numbers are of: the window, or everything since the sidecars began. */
const since = () => $("window").value === "0";
const of = (thing) => (since() ? { ...thing, ...thing.total, rate: 0 } : thing);
const name = (node) => (node.namespace ? `${node.namespace}/${node.name}` : node.name);
let names = new Map();
const called = (id) => (names.has(id) ? name(names.get(id)) : id);

const traffic = (thing) => {
  const s = of(thing);
  if (since()) return s.requests > 0 ? `${number(s.requests)} requests` : `${number(s.connections)} connections`;
  if (s.rate > 0) return rate(s.rate);
  return s.connections > 0 ? `${number(s.connections)} connections` : "quiet";
};
const failing = (thing) => of(thing).failed > 0;
const failure = (thing) => {
  const s = of(thing);
  return s.requests > 0 ? s.failed / s.requests : null;
};

const signals = [
  { name: "Rate", number: true, of: (row) => of(row).rate, text: (row) => (since() ? none : rate(row.rate)) },
  { name: "Requests", number: true, of: (row) => of(row).requests, text: (row) => number(of(row).requests) },
  {
    name: "Errors",
    number: true,
    of: (row) => failure(row),
    text: (row) => share(of(row).failed, of(row).requests),
    kind: (row) => (failing(row) ? "bad" : ""),
  },
  { name: "4xx", number: true, of: (row) => of(row).clientErrors, text: (row) => number(of(row).clientErrors) },
  { name: "p50", number: true, of: (row) => of(row).p50, text: (row) => millis(of(row).p50) },
  { name: "p95", number: true, of: (row) => of(row).p95, text: (row) => millis(of(row).p95) },
  { name: "p99", number: true, of: (row) => of(row).p99, text: (row) => millis(of(row).p99) },
  { name: "Connections", number: true, of: (row) => of(row).connections, text: (row) => number(of(row).connections) },
];

const security = {
  name: "Secured",
  of: (row) => row.secured,
  text: (row) => secured[row.secured],
  kind: (row) => ({ mtls: "good", mixed: "warn", plaintext: "bad" })[row.secured],
};

const edgesTable = new Table(
  $("edges-table"),
  [
    { name: "From", of: (row) => called(row.from), text: (row) => called(row.from) },
    { name: "To", of: (row) => called(row.to), text: (row) => called(row.to) },
    security,
    ...signals,
    { name: "Bytes", number: true, of: (row) => row.bytes, text: (row) => (since() ? none : bytes(row.bytes)) },
    { name: "Retries", number: true, of: (row) => row.retries, text: (row) => (since() ? none : number(row.retries)) },
  ],
  (row) => `${row.from}\n${row.to}`,
  { by: "From", none: "Nothing has been called yet." },
);

const servicesTable = new Table(
  $("services-table"),
  [
    { name: "Service", of: (row) => name(row), text: (row) => name(row) },
    { name: "Ten minutes", draw: (cell, row) => spark(cell, row.series) },
    ...signals,
  ],
  (row) => row.id,
  { by: "Requests", falling: true, none: "There are no services." },
);

const errorsTable = new Table(
  $("errors-table"),
  [
    { name: "From", of: (row) => called(row.from), text: (row) => called(row.from) },
    { name: "To", of: (row) => called(row.to), text: (row) => called(row.to) },
    { name: "Reason", of: (row) => row.reason, text: (row) => row.reason },
    { name: "What it means", text: (row) => row.explanation },
    { name: "Lately", number: true, of: (row) => row.count, text: (row) => number(row.count), kind: (row) => (row.count > 0 ? "bad" : "") },
    { name: "Since the start", number: true, of: (row) => row.total, text: (row) => number(row.total) },
  ],
  (row) => `${row.from}\n${row.to}\n${row.reason}`,
  { by: "Lately", falling: true, none: "None." },
);

const left = (row) => row.notAfter - data.now / 1000;
const sidecarsTable = new Table(
  $("sidecars-table"),
  [
    { name: "Sidecar", of: (row) => row.pod, text: (row) => row.pod },
    { name: "Identity", of: (row) => row.identity, text: (row) => row.identity },
    { name: "Version", of: (row) => row.version, text: (row) => row.version + (row.version === data.version ? "" : " (another than here)"), kind: (row) => (row.version === data.version ? "" : "warn") },
    {
      name: "Certificate ends",
      of: (row) => row.notAfter,
      text: (row) => {
        if (row.notAfter === 0) return "not told yet";
        const ends = left(row) > 0 ? `in ${span(left(row))}, ${clock(row.notAfter)}` : `ended ${span(left(row))} ago`;
        return row.renewalFailingSince > 0 ? `${ends}; renewal fails since ${clock(row.renewalFailingSince)}` : ends;
      },
      kind: (row) => (row.notAfter > 0 && left(row) <= 0 ? "bad" : row.renewalFailingSince > 0 || (row.notAfter > 0 && left(row) < 3600) ? "warn" : ""),
    },
    { name: "Serial", of: (row) => row.serial, text: (row) => row.serial || none },
    { name: "Anchor", of: (row) => row.anchor, text: (row) => row.anchor.slice(0, 12) || none },
    { name: "Connected", of: (row) => row.connectedAt, text: (row) => clock(row.connectedAt) },
    { name: "Rejected", number: true, of: (row) => row.rejected, text: (row) => number(row.rejected), kind: (row) => (row.rejected > 0 ? "bad" : "") },
  ],
  (row) => `${row.pod}\n${row.connectedAt}`,
  { by: "Certificate ends", none: "No sidecar is connected." },
);

const graph = new Graph($("graph"), choose);

/** What is chosen, beside the graph. */
function choose(node) {
  const into = $("details");
  if (!node) {
    into.replaceChildren(element("p", "Choose a node to see who calls it and whom it calls.", "hint"));
    return;
  }
  if (node.kind === "namespace") {
    opened.add(node.namespace);
    draw();
    // It is gone: its services stand in its place.
    const first = graph.order().find((id) => names.get(id)?.namespace === node.namespace);
    if (document.activeElement === document.body || document.activeElement === $("graph")) graph.focus(first);
    return;
  }
  const is = names.get(node.id);
  if (!is) return;
  const s = of(is);
  const list = (title, edges, other) => {
    if (edges.length === 0) return [];
    const lines = document.createElement("ul");
    for (const edge of edges) {
      const line = element("li", `${called(other(edge))}: ${traffic(edge)}, ${secured[edge.secured]}${failing(edge) ? `, ${share(of(edge).failed, of(edge).requests)} fail` : ""}`);
      if (edge.secured !== "mtls" || failing(edge)) line.className = edge.secured === "plaintext" || failing(edge) ? "bad" : "warn";
      lines.append(line);
    }
    return [element("h4", title), lines];
  };
  const shown = document.createElement("div");
  shown.append(
    element("h3", name(is)),
    element("p", kinds[is.kind], "hint"),
    facts([
      ["Traffic", traffic(is)],
      ["Errors", share(s.failed, s.requests), failing(is) ? "bad" : ""],
      ["p50", millis(s.p50)],
      ["p95", millis(s.p95)],
      ["p99", millis(s.p99)],
    ]),
    ...list("Called by", data.edges.filter((e) => e.to === is.id), (e) => e.from),
    ...list("Calls", data.edges.filter((e) => e.from === is.id), (e) => e.to),
  );
  // It is read aloud whenever it is another.
  if (into.textContent !== shown.textContent) into.replaceChildren(shown);
}

/** Numbers of several things, put together. */
function sum(things) {
  const all = { rate: 0, requests: 0, failed: 0, connections: 0, total: { requests: 0, failed: 0, connections: 0 } };
  for (const thing of things) {
    for (const key of ["rate", "requests", "failed", "connections"]) all[key] += thing[key];
    for (const key of ["requests", "failed", "connections"]) all.total[key] += thing.total[key];
  }
  return all;
}

/** The part of the mesh that is asked for, put together by namespace where that is asked for. */
function picture() {
  const wanted = $("search").value.trim().toLowerCase();
  const space = $("namespace").value;
  const is = (node) => (!space || node.namespace === space) && (!wanted || name(node).toLowerCase().includes(wanted));
  const hits = new Set(data.nodes.filter(is).map((node) => node.id));
  const narrowed = wanted || space;
  // Neighbours of what is found belong to the picture.
  const edges = data.edges.filter((e) => (narrowed ? hits.has(e.from) || hits.has(e.to) : true));
  const used = new Set(edges.flatMap((e) => [e.from, e.to]));
  const nodes = data.nodes.filter((node) => used.has(node.id) || (hits.has(node.id) && $("idle").checked));
  const grouping = $("grouping").value;
  const together = grouping === "namespaces" || (grouping === "auto" && !narrowed && nodes.length > MANY);
  const into = new Map(nodes.map((node) => [node.id, together && node.namespace && !opened.has(node.namespace) ? `namespace ${node.namespace}` : node.id]));
  const groups = new Map();
  for (const node of nodes) {
    const id = into.get(node.id);
    if (!groups.has(id)) groups.set(id, []);
    groups.get(id).push(node);
  }
  const shown = [...groups].map(([id, members]) => {
    const [first] = members;
    if (id === first.id) {
      const said = `${name(first)}, ${kinds[first.kind]}: ${traffic(first)}${failing(first) ? `, ${share(of(first).failed, of(first).requests)} fail` : ""}`;
      return { id, namespace: first.namespace, label: first.name, under: [first.namespace, traffic(first)].filter(Boolean).join(" · "), kind: first.kind, failing: failing(first), said };
    }
    const all = sum(members);
    const under = `${members.length} services · ${traffic(all)}`;
    return { id, namespace: first.namespace, label: first.namespace, under, kind: "namespace", failing: failing(all), said: `namespace ${first.namespace}: ${under}` };
  });
  const lines = new Map();
  for (const edge of edges) {
    const [from, to] = [into.get(edge.from), into.get(edge.to)];
    const key = `${from}\n${to}`;
    if (!lines.has(key)) lines.set(key, { from, to, of: [] });
    lines.get(key).of.push(edge);
  }
  const drawn = [...lines.values()].map(({ from, to, of: some }) => {
    const all = sum(some);
    const states = new Set(some.map((e) => e.secured));
    const label = traffic(all) + (failing(all) ? ` ${share(of(all).failed, of(all).requests)} fail` : "");
    return { from, to, secured: states.size === 1 ? [...states][0] : "mixed", rate: since() ? of(all).requests / 60 : all.rate, label, failing: failing(all) };
  });
  return { shown, drawn, edges, hits, narrowed };
}

function draw() {
  if (!data) return;
  names = new Map(data.nodes.map((node) => [node.id, node]));
  spaces();
  const { shown, drawn, edges, hits, narrowed } = picture();
  $("graph-empty").hidden = shown.length > 0;
  graph.show(shown, drawn);
  if (graph.chosen) choose(graph.nodes.get(graph.chosen).is);
  edgesTable.show(edges);
  servicesTable.show(data.nodes.filter((node) => node.kind === "service" && (!narrowed || hits.has(node.id))));
  refusals();
  errorsTable.show(data.errors);
  sidecarsTable.show(data.sidecars);
  lists();
  told();
}

function spaces() {
  const select = $("namespace");
  const all = [...new Set(data.nodes.map((node) => node.namespace).filter(Boolean))].sort();
  if (select.dataset.told === all.join("\n") && select.options.length > 0) return;
  select.dataset.told = all.join("\n");
  const before = select.value;
  const option = (value, text) => {
    const made = element("option", text);
    made.value = value;
    return made;
  };
  select.replaceChildren(option("", "all"), ...all.map((space) => option(space, space)));
  select.value = all.includes(before) ? before : "";
}

const refused = new Map();

function refusals() {
  const list = $("refusal-list");
  const known = new Set();
  const lines = data.refusals.map((refusal) => {
    const key = `${refusal.sidecar} ${refusal.ref}`;
    known.add(key);
    if (!refused.has(key)) refused.set(key, refusalLine(refusal));
    return refused.get(key);
  });
  for (const key of refused.keys()) if (!known.has(key)) refused.delete(key);
  if (lines.length === 0) lines.push(element("li", "None.", "hint"));
  if (lines.length !== list.children.length || lines.some((line, i) => list.children[i] !== line)) list.replaceChildren(...lines);
}

function refusalLine(refusal) {
  const line = document.createElement("li");
  const meta = element("p", `${clock(refusal.at)} · ${refusal.sidecar} · `, "meta");
  meta.append(element("code", refusal.ref));
  const policy = refusal.policy && refusal.policy + (refusal.rule ? ` rule ${refusal.rule}` : "");
  const pairs = [
    ["Caller", [refusal.peer, refusal.source && `from ${refusal.source}`].filter(Boolean).join(" ")],
    ["Called", refusal.called],
    ["Request", [refusal.request, refusal.protocol].filter(Boolean).join(", ")],
    ["Cause", refusal.cause],
    ["Policy", policy],
    ["Matched by", refusal.clause],
    ["What would allow it", refusal.remedy],
  ].filter(([, value]) => value);
  const more = document.createElement("details");
  more.append(element("summary", "More"), facts(pairs));
  line.append(element("p", refusal.text), meta, more);
  return line;
}

function lists() {
  const now = data.now / 1000;
  const set = (list, texts) => {
    if (list.dataset.told === texts.join("\n")) return;
    list.dataset.told = texts.join("\n");
    list.replaceChildren(...texts.map((text) => element("li", text)));
  };
  set($("anchors"), data.anchors.map((a) => `anchor ${a.hash.slice(0, 12)}: ends in ${span(a.notAfter - now)}, ${clock(a.notAfter)}`));
  set($("problems"), data.problems.map((p) => `${p.place}: ${p.message}`));
}

function told() {
  const names = [data.replica, ...data.others.filter((other) => !other.problem).map((other) => other.name)];
  const whose = names.length > 1 ? `${names.length} replicas of the control plane, by way of ${data.replica}` : `control plane ${data.replica}`;
  write($("whose"), `${data.trustDomain} · ${whose}, version ${data.version} · ${data.connected} sidecars.`);
  write($("refusal-count"), data.refusals.length ? String(data.refusals.length) : "");
  write($("error-count"), data.errors.length ? String(data.errors.length) : "");
  write($("sidecar-count"), String(data.connected));
  const { leftOut } = data;
  const notes = data.others.filter((other) => other.problem).map((other) => `Replica ${other.name} of the control plane was not heard, and its sidecars are missing here: ${other.problem}.`);
  if (data.covered < data.window - 1 && !since()) notes.push(`The numbers are of the last ${span(data.covered)}: before that, nobody looked, and nothing was kept.`);
  if (data.silent > 0) notes.push(`${data.silent} of ${data.connected} sidecars are of a version that does not tell of its traffic.`);
  if (leftOut.nodes > 0) notes.push(`${leftOut.nodes} services are not shown: there is no room for more.`);
  if (leftOut.edges > 0) notes.push(`${leftOut.edges} times an edge was left out: more pairs call each other than are kept apart.`);
  if (leftOut.refusals > 0) notes.push(`${leftOut.refusals} refusals are not shown: each sidecar keeps the last 1,000 (weft why).`);
  if (leftOut.sidecars > 0) notes.push(`${leftOut.sidecars} sidecars are not shown: those whose certificates end later.`);
  if (leftOut.problems > 0) notes.push(`${leftOut.problems} problems are not shown: weft status has all.`);
  if (data.othersUnasked) notes.push(`Other replicas of the control plane could not be asked, and sidecars may be missing here: ${data.othersUnasked}.`);
  const list = $("notes");
  if (list.dataset.told !== notes.join("\n")) {
    list.dataset.told = notes.join("\n");
    list.replaceChildren(...notes.map((note) => element("li", note)));
  }
}

function write(where, text) {
  if (where.textContent !== text) where.textContent = text;
}

function say(text, bad = false) {
  write($("state"), text);
  $("state").className = bad ? "bad" : "";
}

let asking = false;
let timer = 0;

async function ask() {
  clearTimeout(timer);
  if (asking || paused || document.hidden) return;
  asking = true;
  let wait = 2000;
  try {
    const window = $("window").value === "0" ? "60" : $("window").value;
    const answer = await fetch(`/data.json?window=${window}`);
    if (answer.status === 403) {
      say("This page's session has ended: run weft dashboard again.", true);
      return;
    }
    if (!answer.ok) throw new Error(`it answers ${answer.status}: ${(await answer.text()).slice(0, 300)}`);
    data = await answer.json();
    wait = Math.max(LEAST_WAIT, data.interval);
    draw();
    say("");
    document.documentElement.dataset.drawn ??= String(Math.round(performance.now()));
  } catch (error) {
    wait = 5000;
    say(`The control plane does not answer: ${error.message}. What is shown is from ${data ? clock(data.now / 1000) : "never"}.`, true);
  } finally {
    asking = false;
  }
  timer = setTimeout(ask, wait);
}

function theme(chosen) {
  if (chosen === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
}

const KEPT = "weft-theme";
$("theme").value = ["light", "dark"].includes(localStorage.getItem(KEPT)) ? localStorage.getItem(KEPT) : "auto";
theme($("theme").value);
$("theme").addEventListener("change", () => {
  localStorage.setItem(KEPT, $("theme").value);
  theme($("theme").value);
});
$("window").addEventListener("change", () => {
  draw();
  ask();
});
$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  write($("pause"), paused ? "Go on" : "Pause");
  if (!paused) ask();
});
for (const id of ["search", "namespace", "grouping", "idle"]) {
  $(id).addEventListener("input", () => {
    if (id === "grouping") opened = new Set();
    draw();
  });
}
document.addEventListener("visibilitychange", ask);
choose(null);
say("Asking the control plane …");
ask();
