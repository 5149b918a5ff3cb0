"""The style sheet of both pages: light, dark, narrow windows and print."""

TEMPLATE = """
{% macro colours(set) %}{% for name, value in set.items() %}--{{ name }}: {{ value }}; {% endfor %}{% endmacro %}
:root { color-scheme: light dark; {{ colours(palette.light) }}
  --serif: Charter, "Bitstream Charter", "Iowan Old Style", "Palatino Linotype", Palatino, Georgia,
    "DejaVu Serif", serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) { :root { {{ colours(palette.dark) }} } }
@media print { :root { color-scheme: light; {{ colours(palette.print) }} } }
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
a { color: inherit; text-decoration-color: var(--rule); text-underline-offset: 3px; }
a:hover { text-decoration-color: currentColor; }
:target { scroll-margin-top: 16px; }
.kicker { color: var(--accent); font-size: 0.8rem; font-weight: 600; letter-spacing: 0.08em;
  text-transform: uppercase; margin-bottom: 8px; }
.subtitle { color: var(--quiet); }
.verdict { font-family: var(--serif); font-size: 1.35rem; line-height: 1.45; margin: 24px 0 28px; max-width: 68ch; }

.banner { border-left: 5px solid var(--quiet); background: var(--panel); padding: 14px 18px; margin: 0 0 16px;
  border-radius: 0 6px 6px 0; overflow-wrap: anywhere; }
.banner p, .banner ul { margin: 2px 0 0; }
.banner ul { padding-left: 20px; }
.banner.warning { border-color: var(--warn); background: var(--warn-panel); }
.banner.failure { border-color: var(--fail); background: var(--fail-panel); }
.banner.warning > b { color: var(--warn); }
.banner.failure > b { color: var(--fail); }
.banner.warning > b::before { content: "⚠ "; }
.banner.failure > b::before { content: "✕ "; }

.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 20px 32px;
  margin: 32px 0 0; }
.figures div { border-top: 2px solid var(--rule); padding-top: 10px; min-width: 0; }
.figures dt { color: var(--quiet); font-size: 0.85rem; }
.figures dd { margin: 0; font-family: var(--serif); font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.figures small { display: block; font-family: var(--sans); font-size: 0.8rem; min-height: 1.2em; }

nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 12px 0 0; margin: 40px 0 0;
  border-top: 1px solid var(--rule); font-size: 0.875rem; }
nav a { display: inline-block; padding: 6px 0; color: var(--accent); }
nav + section > h2 { margin-top: 24px; border-top: 0; }

.summary { display: grid; grid-template-columns: minmax(0, 400px) minmax(0, 1fr); gap: 32px 56px;
  align-items: start; }
.summary:not(:has(> figure)) { grid-template-columns: minmax(0, 1fr); }
.cards { columns: 300px; column-gap: 40px; }
.cards > div { break-inside: avoid; padding-bottom: 28px; }
.cards h3 { margin: 0 0 8px; }
.cards ul { margin: 0; padding-left: 18px; font-size: 0.925rem; line-height: 1.5; overflow-wrap: anywhere; }
.cards li { margin-bottom: 6px; }

.save, button { font: 600 0.75rem/1 var(--sans); color: var(--accent); background: none; border: 1px solid var(--rule);
  border-radius: 4px; padding: 5px 8px; text-decoration: none; white-space: nowrap; cursor: pointer;
  display: inline-block; }
.save:hover, button:hover { border-color: var(--accent); }
.saves { display: flex; flex-wrap: wrap; align-items: center; gap: 8px; max-width: none; font-size: 0.85rem;
  color: var(--quiet); }
.saves .save, .saves button { padding: 8px 12px; font-size: 0.8rem; }
figcaption .save { float: right; padding: 3px 6px; font-size: 0.68rem; margin-left: 8px; }
.choice { border: 0; padding: 0; margin: 0 0 12px; min-width: 0; display: flex; flex-wrap: wrap; gap: 2px 18px;
  font-size: 0.85rem; align-items: center; }
.choice legend { float: left; padding: 0; margin-right: 12px; color: var(--quiet); }
.choice label { display: inline-flex; align-items: center; gap: 6px; padding: 4px 0; cursor: pointer; }
.choice input { accent-color: var(--accent); width: 16px; height: 16px; margin: 0; }

/* The shadows at the sides show only while there is more to scroll to: the inner pair moves with the content. */
.scroll { overflow-x: auto; margin: 0 0 12px; border: 1px solid var(--rule); border-radius: 6px;
  background:
    linear-gradient(to right, var(--paper) 30%, transparent) left / 40px 100% no-repeat local,
    linear-gradient(to left, var(--paper) 30%, transparent) right / 40px 100% no-repeat local,
    linear-gradient(to right, var(--shade), transparent) left / 14px 100% no-repeat scroll,
    linear-gradient(to left, var(--shade), transparent) right / 14px 100% no-repeat scroll; }
.scroll:focus-visible, pre:focus-visible, summary:focus-visible, a:focus-visible, button:focus-visible,
input:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
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
.scores th[scope="row"], .scores thead tr:first-child th:first-child { position: sticky; left: 0; z-index: 1;
  background: var(--paper); }
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
.two-columns td { vertical-align: top; }
.scroll:has(> .compact), .scroll:has(> .narrow) { width: fit-content; max-width: 100%; }
.scores thead th.number { white-space: normal; max-width: 8rem; }
.narrow { width: auto; min-width: min(100%, 560px); }
.notes { color: var(--quiet); font-size: 0.85rem; padding-left: 18px; max-width: 90ch; }
.notes li { margin-bottom: 4px; }
.notes b { color: var(--ink); font-weight: 600; }

.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 18px; padding: 0; margin: 4px 0 12px;
  font-size: 0.82rem; overflow-wrap: anywhere; }
.legend li { display: flex; align-items: center; gap: 6px; min-width: 0; }
.legend svg { flex: none; }
.legend span { color: var(--quiet); }

.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap: 32px 28px; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 0.9rem; margin-bottom: 6px; }
figcaption span { color: var(--quiet); font-size: 0.8rem; }
.chart { width: 100%; height: auto; max-width: 440px; display: block; }
{{ charts }}

details { margin: 24px 0; }
summary { cursor: pointer; padding: 6px 0; overflow-wrap: anywhere; }
summary b { font-family: var(--serif); font-size: 1.15rem; font-weight: 600; }
summary span { color: var(--quiet); font-size: 0.85rem; margin-left: 6px; }
details > .scroll, details > ul { margin-top: 10px; }
h4 { font-size: 0.95rem; margin: 28px 0 8px; }
h5 { font-size: 0.85rem; margin: 16px 0 6px; }
.benchmark { margin: 0; border-bottom: 1px solid var(--rule); }
.benchmark > summary { padding: 12px 0; }
.benchmark > summary code { color: var(--quiet); }
.benchmark > summary b { font-family: var(--sans); font-size: 1rem; }
.benchmark[open] { padding-bottom: 28px; }
.benchmark[open] > summary b { color: var(--accent); }
.flaws { font-size: 0.9rem; color: var(--quiet); }
.flaws b { color: var(--ink); }
.compact { width: auto; min-width: min(100%, 480px); }
.compact th, .compact td { padding: 5px 12px; }
.compact tbody th[scope="row"], .compact thead tr:first-child th:first-child { position: sticky; left: 0;
  z-index: 1; background: var(--paper); }
.compact .number, .compact thead th { white-space: nowrap; }
.compact small { display: block; }
.compact th small { display: inline; }
.compact .family th { padding-top: 14px; color: var(--quiet); font-size: 0.78rem; font-weight: 600; }
.compact thead th[scope="colgroup"] { color: var(--ink); border-bottom: 0; padding-bottom: 0; }
.compact tbody + tbody tr:first-child > * { border-top: 0; }
.classes .start { border-left: 1px solid var(--rule); }
.bar-cell { white-space: nowrap; font-variant-numeric: tabular-nums; }
.share { vertical-align: middle; margin-right: 8px; }
.matrices { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr)); gap: 20px 28px; }
.matrices figcaption { min-height: 1.6em; }
.confusion { width: auto; min-width: 100%; font-size: 0.8rem; border-spacing: 2px; }
.confusion th, .confusion td { padding: 6px 8px; border: 0; text-align: center; font-variant-numeric: tabular-nums; }
.confusion thead th { font-weight: 500; font-size: 0.72rem; color: var(--quiet); white-space: nowrap; }
.confusion tbody th { text-align: right; color: var(--quiet); white-space: nowrap; }
.confusion td { border-radius: 3px; min-width: 44px; }
.confusion .right { font-weight: 700; outline: 1px solid var(--rule); outline-offset: -1px; }
.confusion .edge { border-left: 12px solid transparent; background-clip: padding-box; }
.confusion .sum { color: var(--quiet); font-size: 0.72rem; }
.answered > details { margin: 0 0 4px; }
.answered > details > summary b { font-family: var(--sans); font-size: 0.9rem; }
.examples { list-style: none; padding: 0; margin: 0; display: grid;
  grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); gap: 12px; }
.examples li { background: var(--panel); border-radius: 6px; padding: 12px 14px; min-width: 0;
  overflow-wrap: anywhere; font-size: 0.85rem; }
.examples > li > code { color: var(--quiet); }
.examples dl { display: grid; grid-template-columns: minmax(64px, max-content) minmax(0, 1fr); gap: 4px 14px;
  margin: 8px 0 0; }
.examples dt { color: var(--quiet); max-width: 92px; }
.examples dd { margin: 0; min-width: 0; }
.examples q { quotes: none; font-family: var(--mono); font-size: 0.92em; }
.examples details { margin: 0; }
.examples summary { padding: 0; }
.examples pre { max-height: 320px; overflow: auto; background: var(--paper); margin-top: 6px;
  font: 0.85em/1.45 var(--mono); }

.run { border-top: 1px solid var(--rule); padding-top: 12px; }
.run > summary b { font-size: 1.35rem; }
.changed th, .changed td { background: var(--warn-panel); }
.changed th::before { content: "• "; color: var(--warn); }
pre { background: var(--panel); padding: 14px 16px; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: 0; }

/* The status page. */
.status h2:first-of-type { margin-top: 32px; }
progress { width: 100%; height: 10px; accent-color: var(--accent); margin: 16px 0 0; }
.state { font-weight: 600; white-space: nowrap; }
.state::before { content: ""; display: inline-block; width: 9px; height: 9px; border-radius: 50%;
  background: var(--quiet); margin-right: 7px; }
.state.good::before { background: var(--gain); }
.state.busy::before { background: var(--accent); }
.state.bad::before { background: var(--fail); border-radius: 1px; }
.state.wait::before { background: none; border: 2px solid var(--quiet); }
.state small { white-space: normal; }

@media (max-width: 900px) { .summary { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 640px) {
  main { padding: 32px 18px 64px; }
  h1 { font-size: 1.8rem; }
  .verdict { font-size: 1.15rem; }
  .figures { grid-template-columns: 1fr 1fr; gap: 16px 20px; }
  .figures dd { font-size: 1.2rem; }
  nav ul { gap: 0 18px; }
  .choice legend { float: none; width: 100%; }
  th, td { padding: 6px 9px; }
  .scores tbody th[scope="row"] { white-space: normal; min-width: 7.5rem; max-width: 8.5rem;
    overflow-wrap: anywhere; }
  .scores tbody th[scope="row"] code { display: none; }
  .scores thead th[scope="colgroup"], .compact thead th[scope="colgroup"] { text-align: left; }
  .compact th, .compact td { padding: 5px 9px; }
  .confusion th, .confusion td { padding: 6px 3px; }
  .confusion td { min-width: 34px; }
  .confusion thead th:first-child { font-size: 0; }
  .confusion .edge { border-left-width: 6px; }
  .skipped span { left: 9rem; max-width: calc(100vw - 13.5rem); overflow-wrap: anywhere; }
  caption span { max-width: calc(100vw - 5rem); white-space: normal; }
}
@media print {
  @page { size: A4 landscape; margin: 12mm; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  .scroll { overflow: visible; border: 0; }
  #scores, #published { break-before: page; }
  h2 { margin-top: 24px; }
  nav, .save, .saves, .choice { display: none; }
  .scores, .scores thead th, .scores .mean small { font-size: 6.5pt; }
  .scores small, .scores tbody th[scope="row"] code, .axis { font-size: 5.5pt; }
  .scores th, .scores td { padding: 2px 3px; }
  .scores .group th { font-size: 8pt; padding-top: 8px; }
  .scores .picture { width: 104px; }
  .scores .picture svg { width: 96px; height: auto; }
  .axis { width: 96px; }
  .summary { grid-template-columns: 300px minmax(0, 1fr); gap: 24px; }
  .cards { columns: 240px; }
  .cards ul { font-size: 8.5pt; }
  .two-columns, .two-columns thead th { font-size: 5.6pt; }
  .two-columns small { font-size: 4.8pt; }
  .scores.two-columns th, .scores.two-columns td { padding: 2px; }
  .banner, .confusion td, .share, .mean { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .notes { font-size: 7.5pt; }
  .scores th[scope="row"], .compact th { position: static; }
  tr, figure, .banner, .figures div { break-inside: avoid; }
  h2, h3, .group { break-after: avoid; }
}
{% for kind in ["right", "wrong", "apart"] %}
{% for step in range(palette.shades + 1) %}
.{{ kind }}.shade-{{ step }} {
  background-color: color-mix(in srgb, var(--heat-{{ kind }}) {{ 10 * step }}%, var(--paper));
}
{% endfor %}
{% endfor %}
{# Published columns can be hidden one by one, a dozen of them. #}
{% for index in range(12) %}
main:has(#published-{{ index }}:not(:checked)) .column-{{ index }} { display: none; }
{% endfor %}
"""
