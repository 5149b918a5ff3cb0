"""The report's style sheet and script, as Python because Flower's app bundle carries no .css or .js files."""

STYLE = """:root {
  color-scheme: light dark;
  --paper: #fcfcfa; --panel: #f3f3ef; --ink: #1b1e23; --quiet: #585e68; --rule: #d9d9d2; --accent: #0b5a7a; --shade: #0003;
  --warn: #7a4b00; --warn-panel: #fff3d6; --fail: #9b1c1c; --fail-panel: #fde8e6; --gain: #12663a; --loss: #9b1c1c;
  --slot-0: #0b5a9c; --slot-1: #b8500b; --slot-2: #167a4e; --slot-3: #8a3a9b;
  --slot-4: #6b7280; --slot-5: #0e7c86; --slot-6: #8c6206; --slot-7: #b02a62;
  --serif: Charter, "Bitstream Charter", "Iowan Old Style", "Palatino Linotype", Palatino, Georgia, "DejaVu Serif", serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181c; --panel: #1e2228; --ink: #e8e7e2; --quiet: #a3a9b3; --rule: #363b43; --accent: #7cc4e4; --shade: #000a;
    --warn: #ffcf70; --warn-panel: #362a10; --fail: #ffa8a0; --fail-panel: #3b1a1a; --gain: #7fd6a2; --loss: #ffa8a0;
    --slot-0: #6cb4f5; --slot-1: #f59a52; --slot-2: #5fcf9b; --slot-3: #d294e0;
    --slot-4: #a3a9b3; --slot-5: #56c7d1; --slot-6: #dcb455; --slot-7: #f283ae;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--sans); }
main { max-width: 1360px; margin: 0 auto; padding: 56px 32px 96px; }
h1, h2, h3 { font-family: var(--serif); font-weight: 600; line-height: 1.2; text-wrap: balance; }
h1 { font-size: 2.3rem; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 1.5rem; margin: 64px 0 16px; padding-top: 20px; border-top: 1px solid var(--rule); }
h3 { font-size: 1.15rem; margin: 40px 0 12px; }
p { margin: 0 0 12px; max-width: 72ch; overflow-wrap: anywhere; }
small { font-size: 0.75rem; color: var(--quiet); font-weight: 400; }
code { font-family: var(--mono); font-size: 0.86em; }
.kicker { color: var(--accent); font-size: 0.8rem; font-weight: 600; letter-spacing: 0.08em; text-transform: uppercase; margin-bottom: 8px; }
.subtitle { color: var(--quiet); }
.verdict { font-family: var(--serif); font-size: 1.35rem; line-height: 1.45; margin: 24px 0 28px; max-width: 68ch; }

.banner { border-left: 5px solid var(--quiet); background: var(--panel); padding: 14px 18px; margin: 0 0 16px; border-radius: 0 6px 6px 0; overflow-wrap: anywhere; }
.banner p, .banner ul { margin: 2px 0 0; }
.banner ul { padding-left: 20px; }
.banner.warning { border-color: var(--warn); background: var(--warn-panel); }
.banner.failure { border-color: var(--fail); background: var(--fail-panel); }
.banner.warning > b { color: var(--warn); }
.banner.failure > b { color: var(--fail); }
.banner.warning > b::before { content: "⚠ "; }
.banner.failure > b::before { content: "✕ "; }

.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 20px 32px; margin: 32px 0 0; }
.figures div { border-top: 2px solid var(--rule); padding-top: 10px; min-width: 0; }
.figures dt { color: var(--quiet); font-size: 0.85rem; }
.figures dd { margin: 0; font-family: var(--serif); font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.figures small { display: block; font-family: var(--sans); font-size: 0.8rem; min-height: 1.2em; }

/* The shadows at the sides show only while there is more to scroll to: the inner pair moves with the content and covers them. */
.scroll { overflow-x: auto; margin: 0 0 12px; border: 1px solid var(--rule); border-radius: 6px;
  background:
    linear-gradient(to right, var(--paper) 30%, transparent) left / 40px 100% no-repeat local,
    linear-gradient(to left, var(--paper) 30%, transparent) right / 40px 100% no-repeat local,
    linear-gradient(to right, var(--shade), transparent) left / 14px 100% no-repeat scroll,
    linear-gradient(to left, var(--shade), transparent) right / 14px 100% no-repeat scroll; }
.scroll:focus-visible, pre:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: 0.875rem; line-height: 1.35; }
caption { text-align: left; color: var(--quiet); font-size: 0.8rem; padding: 10px 12px 6px; }
th, td { padding: 7px 12px; text-align: left; vertical-align: middle; border-bottom: 1px solid var(--rule); }
tbody:last-child tr:last-child > * { border-bottom: 0; }
thead th { color: var(--quiet); font-weight: 600; font-size: 0.8rem; vertical-align: bottom; }
tbody th { font-weight: 500; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.plain thead th:not(:first-child) { white-space: nowrap; }
.plain td, .plain tbody th { vertical-align: top; }
.plain tbody th { min-width: 7rem; max-width: 22rem; overflow-wrap: anywhere; }
.plain td:has(> code), .reason { overflow-wrap: anywhere; min-width: 12rem; }

.scores { white-space: nowrap; }
.scores th, .scores td { padding: 6px 9px; }
.scores th[scope="row"], .scores thead tr:first-child th:first-child { position: sticky; left: 0; z-index: 1; background: var(--paper); }
.scores tbody th[scope="row"] code { display: block; color: var(--quiet); font-size: 0.72rem; }
.scores thead th[scope="colgroup"] { color: var(--ink); text-align: center; border-bottom: 0; padding-bottom: 0; }
.scores .start { border-left: 1px solid var(--rule); }
.scores td small { display: block; }
.scores .picture { padding: 2px 6px; width: 162px; }
.scores .picture svg { display: block; }
.scores thead .picture { padding-bottom: 7px; }
.axis { display: flex; justify-content: space-between; width: 150px; font-size: 0.7rem; font-weight: 400; }
.group th { padding-top: 22px; font-family: var(--serif); font-size: 1rem; font-weight: 600; }
.group th span { position: sticky; left: 12px; }
.mean th, .mean td, .scores .mean th[scope="row"] { background: var(--panel); }
.overall th, .overall td { font-weight: 600; border-top: 2px solid var(--rule); }
.published { color: var(--quiet); }
.skipped { color: var(--quiet); font-style: italic; white-space: normal; }
.skipped span { display: inline-block; position: sticky; left: 14rem; max-width: 50rem; }
caption span { display: inline-block; position: sticky; left: 12px; }
.gain { color: var(--gain); }
.loss { color: var(--loss); }
.notes { color: var(--quiet); font-size: 0.85rem; padding-left: 18px; max-width: 90ch; }
.notes li { margin-bottom: 4px; }
.notes b { color: var(--ink); font-weight: 600; }

.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 18px; padding: 0; margin: 4px 0 12px; font-size: 0.82rem; overflow-wrap: anywhere; }
.legend li { display: flex; align-items: center; gap: 6px; min-width: 0; }
.legend svg { flex: none; }
.legend span { color: var(--quiet); }

.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap: 32px 28px; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 0.9rem; margin-bottom: 6px; }
figcaption span { color: var(--quiet); font-size: 0.8rem; }
.chart { width: 100%; height: auto; max-width: 440px; display: block; }
.grid { stroke: var(--rule); stroke-width: 1; }
.tick { fill: var(--quiet); font: 11px var(--sans); font-variant-numeric: tabular-nums; }
.line { fill: none; stroke: var(--slot); stroke-linejoin: round; stroke-linecap: round; }
.thin { stroke-width: 1.3; }
.thick { stroke-width: 3; }
.whisker { stroke-width: 1.6; opacity: 0.75; }
.mark { fill: var(--slot); stroke: var(--slot); stroke-width: 1.4; }
.hollow { fill: var(--paper); }
.bar { fill: var(--slot); }
.cross { stroke: var(--fail); stroke-width: 2; fill: none; stroke-linecap: round; }
.slot-0 { --slot: var(--slot-0); } .slot-1 { --slot: var(--slot-1); } .slot-2 { --slot: var(--slot-2); } .slot-3 { --slot: var(--slot-3); }
.slot-4 { --slot: var(--slot-4); } .slot-5 { --slot: var(--slot-5); } .slot-6 { --slot: var(--slot-6); } .slot-7 { --slot: var(--slot-7); }

details { margin: 24px 0; }
summary { cursor: pointer; padding: 6px 0; overflow-wrap: anywhere; }
summary b { font-family: var(--serif); font-size: 1.15rem; font-weight: 600; }
summary span { color: var(--quiet); font-size: 0.85rem; margin-left: 6px; }
details > .scroll, details > ul { margin-top: 10px; }
.run { border-top: 1px solid var(--rule); padding-top: 12px; }
.run > summary b { font-size: 1.35rem; }
.changed th, .changed td { background: var(--warn-panel); }
.changed th::before { content: "• "; color: var(--warn); }
pre { background: var(--panel); padding: 14px 16px; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }

@media (max-width: 640px) {
  main { padding: 32px 18px 64px; }
  h1 { font-size: 1.8rem; }
  .verdict { font-size: 1.15rem; }
  .figures { grid-template-columns: 1fr 1fr; gap: 16px 20px; }
  .figures dd { font-size: 1.2rem; }
  th, td { padding: 6px 9px; }
  .scores tbody th[scope="row"] { white-space: normal; min-width: 7.5rem; max-width: 8.5rem; overflow-wrap: anywhere; }
  .scores tbody th[scope="row"] code { display: none; }
  .skipped span { left: 9rem; max-width: calc(100vw - 13.5rem); overflow-wrap: anywhere; }
  caption span { max-width: calc(100vw - 5rem); white-space: normal; }
}
@media print {
  :root { color-scheme: light; --paper: #fff; --panel: #f3f3f0; --ink: #000; --quiet: #444; --rule: #bbb; --accent: #0b5a7a;
    --warn: #7a4b00; --warn-panel: #fff3d6; --fail: #9b1c1c; --fail-panel: #fde8e6; --gain: #12663a; --loss: #9b1c1c;
    --slot-0: #0b5a9c; --slot-1: #b8500b; --slot-2: #167a4e; --slot-3: #8a3a9b; --slot-4: #6b7280; --slot-5: #0e7c86; --slot-6: #8c6206; --slot-7: #b02a62; }
  @page { size: A4 landscape; margin: 12mm; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  .scroll { overflow: visible; border: 0; }
  section:has(.scores) { break-before: page; }
  h2 { margin-top: 24px; }
  .scores, .scores thead th, .scores .mean small { font-size: 6.5pt; }
  .scores small, .scores tbody th[scope="row"] code, .axis { font-size: 5.5pt; }
  .scores th, .scores td { padding: 2px 3px; }
  .scores .group th { font-size: 8pt; padding-top: 8px; }
  .scores .picture { width: 104px; }
  .scores .picture svg { width: 96px; height: auto; }
  .axis { width: 96px; }
  .notes { font-size: 7.5pt; }
  .scores th[scope="row"] { position: static; }
  tr, figure, .banner, .figures div { break-inside: avoid; }
  h2, h3, .group { break-after: avoid; }
}
"""

SCRIPT = """"use strict";
// Printing shows what is folded away, and folds it away again.
const folded = [];
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) {
    details.open = true;
    folded.push(details);
  }
});
addEventListener("afterprint", () => {
  for (const details of folded.splice(0)) details.open = false;
});

// Pixels by which the page is wider than the window, for whoever checks the layout. It should be 0.
addEventListener("load", () => {
  const root = document.documentElement;
  root.dataset.windowWidth = String(root.clientWidth);
  root.dataset.overflow = String(root.scrollWidth - root.clientWidth);
});
"""
