"""The status page of a deployment: the run chosen, its banks, refusals, scores and curves, and the list of all runs."""

TEMPLATE = """
{% from "macros" import figures, key_figures, plain, table %}
{% macro state(word, note="") %}
<span class="state {{ looks.get(word, "") }}">{{ word }}</span>{% if note %} <small>{{ note }}</small>{% endif %}
{% endmacro %}
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<noscript><meta http-equiv="refresh" content="{{ refresh_s }}"></noscript>
<link rel="icon" href="data:,"><title>{{ tab }}</title>
<style>{{ style }}</style></head>
<body class="status"><main>
<header><p class="kicker">fedfinlora aggregator</p><h1>{{ title }}</h1>
<p class="subtitle">{{ clock }}, refreshed every {{ refresh_s }} seconds. Read only.</p></header>
<div class="banner failure" id="gone" hidden><b>No answer from the aggregator.</b> This page is not up to date.</div>
{% for warning in warnings %}<div class="banner warning"><b>Certificate</b><p>{{ warning }}</p></div>{% endfor %}

{% if shown %}
<section id="present"><h2>{{ shown.name }}</h2><p>{{ state(shown.state, present.note) }}</p>
<p class="subtitle">{{ present.described }}</p>
{% if present.reason %}
<div class="banner failure"><b>The run {{ shown.state }}</b><p>{{ present.reason }}</p></div>
{% endif %}
{% if present.planned %}
<progress aria-label="rounds" max="{{ present.planned }}" value="{{ present.done }}"></progress>
{% endif %}
{{ key_figures(present.figures) }}</section>
{% else %}
<h2>No run yet</h2><p>Start one: python -m fedfinlora coordinator run …</p>
{% endif %}

<section id="banks"><h2>Banks</h2>
{% if banks %}
{% call plain("Banks", bank_head, bank_head[:4]) %}
{% for bank in banks %}
<tr><th scope="row">{{ bank.name }}</th>
<td>{% if bank.connection %}{{ state(bank.connection) }}{% else %}not enrolled{% endif %}</td>
<td>{% if bank.in_round %}{{ state(bank.in_round) }}{% else %}{{ DASH }}{% endif %}</td>
<td class="reason">
{%- if bank.last.last_outcome %}{{ state(bank.last.last_outcome, bank.last.last_reason) }}
{%- else %}{{ DASH }}{% endif %}</td>
{% for figure in bank.figures %}<td class="number">{{ figure }}</td>{% endfor %}
</tr>
{% endfor %}
{% endcall %}
{% else %}
<p>No bank is enrolled.</p>
{% endif %}
</section>

{% if shown and shown.refusals %}
<section id="refusals"><h2>Refused by banks</h2>
{% call plain("Refusals", ["Bank", "Rule", "Times", "Last round"], ["Bank", "Rule"]) %}
{% for refused in shown.refusals %}
<tr><th scope="row">{{ refused.bank }}</th><td><code>{{ refused.rule }}</code></td>
<td class="number">{{ refused.rounds }}</td><td class="number">{{ refused.last_round }}</td></tr>
{% endfor %}
{% endcall %}
</section>
{% endif %}

{% if scores and scores.rows %}<section id="scores"><h2>Scores</h2>{{ table(scores) }}</section>{% endif %}
{% if charts %}<section id="curves"><h2>Round by round</h2>{{ figures(charts, can_save=false) }}</section>{% endif %}

{% if runs %}
<section id="runs"><h2>Runs</h2><p>{{ runs|length|plural("run") }}, the last one first.</p>
{% set head = ["Run", "State", "Rounds", "Banks", "Refusals", "Started", "Model"] %}
{% call plain("Runs", head, ["Run", "State", "Started", "Model"]) %}
{% for one in runs %}
<tr><th scope="row"><a href="?run={{ one.number }}"{% if one is sameas shown %} aria-current="true"{% endif %}>
{{- one.name }}</a></th><td>{{ state(one.state) }}</td>
<td class="number">{{ one.progress.rounds_done }} of {{ one.progress.rounds or DASH }}</td>
<td class="number">{{ one.replies|length|count }}</td>
<td class="number">{{ one.refusals|sum(attribute="rounds")|count }}</td>
<td>{{ started[one.number] }}</td><td>{{ one.run.model }}</td></tr>
{% endfor %}
{% endcall %}
</section>
{% endif %}
</main>
<script>{{ script }}</script></body></html>
""".lstrip()
