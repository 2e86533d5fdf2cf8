"use strict";
(() => {
  const parsed = (id) => JSON.parse(document.getElementById(id).textContent);
  const run = parsed("run");
  const { problems, golds, reference } = parsed("problems");
  const PAPER_WIDTH = 670;  // CSS pixels between the margins of A4 and of US letter
  const element = (id) => document.getElementById(id);
  const made = (tag, text, className) => {
    const node = document.createElement(tag);
    node.textContent = text;
    if (className) node.className = className;
    return node;
  };

  for (const plot of document.querySelectorAll(".plot")) {
    const { data, layout } = parsed(plot.dataset.figure);
    Plotly.newPlot(plot, data, layout, { displaylogo: false, responsive: true });
    addEventListener("beforeprint", () => Plotly.relayout(plot, { width: PAPER_WIDTH }));
    addEventListener("afterprint", () => Plotly.relayout(plot, { width: null, autosize: true }));
  }

  element("save").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(run)], { type: "application/json" }));
    link.download = document.title.replaceAll(" ", "_") + ".json";
    link.click();
    URL.revokeObjectURL(link.href);
  });

  // --- every answer: the reference beside an arm, one problem at a time
  const key = (item) => item.subject + "/" + item.problem_id;
  const byArm = new Map();
  for (const item of run.items) {
    if (!byArm.has(item.arm)) byArm.set(item.arm, new Map());
    byArm.get(item.arm).set(key(item), item);
  }
  const base = [...(byArm.get(reference) ?? new Map()).values()];
  const others = [...byArm.keys()].filter((arm) => arm !== reference);
  if (!others.length || !base.length) {
    element("flips").replaceChildren(made("p", "No arm except the reference has finished a block yet."));
    return;
  }
  const fill = (select, values) => select.replaceChildren(...values.map((value) => new Option(value.replaceAll("_", " "), value)));
  fill(element("flip-arm"), others);
  fill(element("flip-subject"), ["all subjects", ...new Set(base.map((item) => item.subject))]);
  fill(element("flip-kind"), ["wrong to right", "right to wrong", "every problem"]);
  let at = 0;

  const found = () => {
    const [arm, subject, metric, kind] = ["arm", "subject", "metric", "kind"].map((name) => element("flip-" + name).value);
    const right = (item) => item.grade[metric] === "correct";
    return base.flatMap((before) => {
      const after = byArm.get(arm).get(key(before));
      const risky = before.grade.gold === "doubtful" || before.grade.gold === "unread";
      if (element("flip-golds").value && !risky) return [];
      if (!after || (subject !== "all subjects" && before.subject !== subject)) return [];
      const fits = kind === "every problem" || (right(before) !== right(after) && right(after) === (kind === "wrong to right"));
      return fits ? [[before, after]] : [];
    });
  };

  const answer = (node, item, divergesAt) => {
    const grade = item.grade;
    const facts = [`exact match: ${grade.exact_match}`, `math-verify: ${grade.math_verify}`, `${item.n_tokens} tokens`];
    if (grade.strict) facts.splice(2, 0, `strict: ${grade.strict}`);
    if (item.truncated) facts.push("truncated");
    if (item.repetitive) facts.push("looping");
    if (!grade.marked) facts.push("no marker sentence");
    const text = document.createElement("div");
    text.className = "answer";
    if (divergesAt === null) text.textContent = item.completion;
    else {
      const letters = [...item.completion];  // places are counted in characters, not in UTF-16 units
      const rest = letters.slice(divergesAt).join("");
      const word = rest.match(/^\s*\S+/)?.[0] ?? "\u23f9";
      text.append(letters.slice(0, divergesAt).join(""), made("mark", word), rest.slice(rest ? word.length : 0));
    }
    node.replaceChildren(made("h3", item.arm), made("p", facts.join(" \u00b7 ").replaceAll("_", " ")), made("p", "Extracted answer: " + (grade.answer || "nothing")), text);
  };

  const draw = () => {
    const list = found();
    at = Math.min(Math.max(at, 0), Math.max(list.length - 1, 0));
    element("flip-count").textContent = list.length ? `${at + 1} of ${list.length}` : "No matching problems.";
    element("flip-previous").disabled = at === 0;
    element("flip-next").disabled = at + 1 >= list.length;
    for (const id of ["flip-problem", "flip-gold", "flip-left", "flip-right"]) element(id).replaceChildren();
    if (!list.length) return;
    const [before, after] = list[at];
    element("flip-problem").innerHTML = problems[before.problem_id];  // escaped, and MathML of known elements only
    element("flip-gold").innerHTML = golds[before.problem_id];
    answer(element("flip-left"), before, after.diverges_at);
    answer(element("flip-right"), after, after.diverges_at);
  };
  for (const name of ["arm", "subject", "metric", "golds", "kind"]) element("flip-" + name).addEventListener("change", () => { at = 0; draw(); });
  element("flip-previous").addEventListener("click", () => { at -= 1; draw(); });
  element("flip-next").addEventListener("click", () => { at += 1; draw(); });
  if (!found().length) element("flip-kind").value = "every problem";
  draw();
})();
