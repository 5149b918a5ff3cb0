"""The report's page: what has to be known first, the summary, and the frame of all sections."""

TEMPLATE = """
{% from "macros" import figure, figures, key_figures, legend, save, save_chart, sentences, table %}
{% from "scores" import paired_table, published_table, score_table %}
{% from "benchmarks" import benchmark %}
{% from "run" import run_section %}
{% set several = views|length > 1 %}
{% set alone = "" if several else run_section(views[0]) %}
{% set contents = [
  ("summary", "Summary", true), ("scores", "Scores", true), ("paired", "Paired differences", pairs),
  ("published", "Next to published figures", has_published), ("benchmarks", "Benchmark by benchmark", details),
  ("curves", "Curves side by side", curves), ("runs", "Runs", several or alone.strip()),
] %}
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<link rel="icon" href="data:,"><title>{{ title }}: {{ subtitle }}</title>
<style>{{ style }}</style></head>
<body><main>
<header><p class="kicker">fedfinlora report</p><h1>{{ title }}</h1><p class="subtitle">{{ subtitle }}</p>
<p class="verdict">{{ verdict }}</p></header>
{% for look, heading, sentence in banners %}
<aside class="banner {{ look }}" role="note"><b>{{ heading }}</b><p>{{ sentence }}</p></aside>
{% endfor %}
{% if not several %}{{ key_figures(views[0].figures) }}{% endif %}
<nav aria-label="Contents"><ul>
{% for name, heading, there in contents if there %}<li><a href="#{{ name }}">{{ heading }}</a></li>{% endfor %}
</ul></nav>

<section id="summary"><h2>Summary</h2><div class="summary">
{% if overview %}{{ figure(overview) }}{% endif %}
<div class="cards">
{% for heading, items in cards.items() %}<div><h3>{{ heading }}</h3>{{ sentences(items) }}</div>{% endfor %}
</div></div></section>

<section id="scores"><h2>Scores</h2>
{% if content.systems %}
<p class="saves"><span>Save the scores:</span>
{% for name, shown, mime_type, text in files %}
{{ save(name, mime_type, text, shown, "Save " ~ name) }}
{% endfor %}
{% if score_chart %}{{ save_chart(score_chart) }}{% endif %}
</p>
{{ legend(content.systems) }}{{ score_table(content, score_plots, mean_rows) }}
{% else %}
<p>No model was scored.</p>
{% endif %}
</section>

{% if pairs %}
<section id="paired"><h2>Paired differences</h2>{{ paired_table(pairs, pair_groups) }}</section>
{% endif %}

{% if has_published %}
<section id="published"><h2>Next to the published figures</h2>
{{ legend(content.systems) }}{{ published_table(content, published_columns, published_means, federated) }}
{{ figures(published_charts) }}</section>
{% endif %}

{% if details %}
<section id="benchmarks"><h2>Benchmark by benchmark</h2>
<p class="saves"><button type="button" data-unfold="true" hidden>Open all</button>
<button type="button" data-unfold="" hidden>Fold all</button></p>
{% for heading, items in details %}
<h3>{{ heading }}</h3>{% for item in items %}{{ benchmark(item) }}{% endfor %}
{% endfor %}
</section>
{% endif %}

{% if curves %}
<section id="curves"><h2>Curves side by side</h2>{{ figures(curves) }}</section>
{% endif %}

{% if several %}
<section id="runs"><h2>Runs</h2>{{ table(runs_table) }}
{% for view in views %}
<details class="run"><summary><b>{{ modes.get(view.run.mode, view.run.mode) }}</b>
<span>{{ view.run.name }}</span></summary>
{{ key_figures(view.figures) }}{{ run_section(view) }}</details>
{% endfor %}
</section>
{% elif alone.strip() %}
<section id="runs"><h2>The run</h2>{{ alone }}</section>
{% endif %}
</main>
<script>{{ script }}</script></body></html>
""".lstrip()
