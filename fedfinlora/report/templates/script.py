"""The JavaScript of both pages. They work without it too."""

REPORT = """"use strict";
const all = (selector) => document.querySelectorAll(selector);

// Printing shows what is folded away, but for benchmarks and for runs side by side: those print as they are.
const folded = [];
addEventListener("beforeprint", () => {
  for (const details of all("details:not([open], .benchmark, .benchmark details, .run, .run details)")) {
    details.open = true;
    folded.push(details);
  }
});
addEventListener("afterprint", () => {
  for (const details of folded.splice(0)) details.open = false;
});

// A link to a benchmark opens it.
const unfold = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.tagName === "DETAILS") target.open = true;
};
addEventListener("hashchange", unfold);
unfold();

for (const button of all("button[data-unfold]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    for (const details of all("details.benchmark")) details.open = Boolean(button.dataset.unfold);
  });
}
"""

STATUS = """"use strict";
setInterval(async () => {
  if (document.hidden) return;
  try {
    const answer = await fetch(location.href, {cache: "no-store"});
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.querySelector("main");
    if (!answer.ok || !fresh) return;
    const scrolled = [...document.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
    document.querySelector("main").replaceWith(fresh);
    document.querySelectorAll(".scroll").forEach((box, place) => { box.scrollLeft = scrolled[place] || 0; });
    document.title = page.title;
    document.documentElement.dataset.refreshed = String(Number(document.documentElement.dataset.refreshed || 0) + 1);
  } catch {
    document.querySelector("#gone").hidden = false;
  }
}, {{ 1000 * refresh_s }});
"""
