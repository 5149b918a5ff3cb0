"""The wide tables: scores, scores next to published ones, and paired differences, each with the notes below it."""

TEMPLATE = """
{% from "macros" import scroll %}

{# The heading of a column in a group of columns, of which the first has a rule at its left. #}
{% macro sub_heading(name, loop, css_class="") %}
<th scope="col" class="number {{ css_class }}{% if loop.first %} start{% endif %}">{{ name }}</th>
{% endmacro %}

{# A row that names the group of benchmarks below it. #}
{% macro group_heading(title, columns) %}
<tr class="group"><th scope="rowgroup" colspan="{{ columns }}"><span>{{ title }}</span></th></tr>
{% endmacro %}

{# The name of a benchmark, leading to its details. #}
{% macro row_heading(item) %}
<th scope="row"><a href="#benchmark-{{ item.key }}">{{ item.title }}</a> <code>{{ item.key }}</code></th>
{% endmacro %}

{# The bodies of a table by group, each with its means, and the means of all. The caller writes a row. #}
{% macro bodies(groups, means, columns) %}
{% for title, items in groups.items() %}
<tbody>{{ group_heading(title, 1 + columns) }}
{% for item in items %}{{ caller(item, none) }}{% endfor %}
{% if means[title] %}{{ caller(none, means[title]) }}{% endif %}
</tbody>
{% endfor %}
{% if means[ALL] %}<tbody class="overall">{{ caller(none, means[ALL]) }}</tbody>{% endif %}
{% endmacro %}

{% macro score_table(content, plots, means) %}
{% set systems, ranked = content.systems, content.label_systems %}
{% set columns = 2 + 3 * systems|length - systems|selectattr("kind", "equalto", "base")|list|length + ranked|length %}
{% call scroll("Scores by benchmark") %}
<table class="scores">
<caption><span>Accuracy in percent with its 95 % interval; change over base in percentage points.</span></caption>
<thead><tr><th scope="col" rowspan="2">Benchmark</th>
<th scope="col" rowspan="2" class="picture">Score with 95 % interval
<span class="axis"><span>0</span><span>50</span><span>100 %</span></span></th>
<th scope="col" rowspan="2" class="number">Rows</th>
{% for system in systems %}
<th scope="colgroup" colspan="{{ 2 if system.kind == "base" else 3 }}" class="start">{{ system.heading }}</th>
{% endfor %}
{% if ranked %}
<th scope="colgroup" colspan="{{ ranked|length }}" class="start">Most probable label<br>
<small>no text generated</small></th>
{% endif %}
</tr><tr>
{% for system in systems %}
{% for name in (["Accuracy", "Unparsed"] if system.kind == "base" else ["Accuracy", "Change", "Unparsed"]) %}
{{ sub_heading(name, loop) }}
{% endfor %}
{% endfor %}
{% for system in ranked %}{{ sub_heading(system.heading, loop) }}{% endfor %}
</tr></thead>
{% call(item, mean) bodies(content.groups, means, columns) %}
{% if mean %}{{ mean_row(mean, ranked) }}
{% elif content.ns(item.key) %}{{ score_row(content, item, plots[item.key]) }}
{% else %}
{% set reason = content.skipped.get(item.key, "") %}
<tr><th scope="row">{{ item.title }} <code>{{ item.key }}</code></th>
<td colspan="{{ columns }}" class="skipped"><span>Not scored{% if reason %}: {{ reason }}{% endif %}</span></td></tr>
{% endif %}
{% endcall %}
</table>
{% endcall %}
<ul class="notes">
<li><b>Accuracy</b> is the share of rows whose parsed answer is right, and below it the 95 % interval.
<b>Unparsed</b> answers are those in which no answer was found; they count as wrong.</li>
<li>A <strong>bold change</strong> means that the two intervals do not overlap. Smaller changes may be chance.</li>
<li><b>Means</b> are over the sets that every system here was scored on; BERTScore sets are not included. Their intervals
take the sets as independent (MOVER).</li>
{% if ranked %}
<li><b>Most probable label</b> is another task than answering in text: the model only ranks the labels, so nothing is
unparsed. Compare it with itself only.</li>
{% endif %}
{% if content.scores|selectattr("of_banks")|list %}
<li><b>Local</b> is the mean of the banks that trained alone; below it the worst and the best bank, so its changes are
never bold.</li>
{% endif %}
{% for encoder in content.encoders %}<li><b>BERTScore</b> encoder: {{ encoder }}.</li>{% endfor %}
</ul>
{% endmacro %}

{% macro score_row(content, item, plot) %}
<tr>{{ row_heading(item) }}
<td class="picture">
{%- if content.is_bertscored(item.key) %}<small>BERTScore F1, not an accuracy</small>
{%- elif plot %}{{ plot|picture("intervals") }}{% endif %}</td>
<td class="number">{{ content.ns(item.key)|map("count")|join(DASH) }}</td>
{% for system in content.systems %}
{% set score = system.scores.get(item.key) %}
<td class="number start">
{%- if score %}<b>{{ score.shown(score.value) }}</b><small>{{ score.bounds|interval(score.bertscore) }}</small>
{%- else %}{{ DASH }}{% endif %}</td>
{% if system.kind != "base" %}{{ change(system, item.key, score) }}{% endif %}
<td class="number">
{%- if score and score.unparsed_share is not none %}{{ score.unparsed_share|percent(0) }} %
{%- else %}{{ DASH }}{% endif %}</td>
{% endfor %}
{% for system in content.label_systems %}
{% set score = system.scores.get(item.key) %}
<td class="number{% if loop.first %} start{% endif %}"><b>{{ system.labels_accuracy(item.key)|percent }}</b>
{%- if score %}<small>{{ score.bounds_of("labels_accuracy")|interval }}</small>{% else %}<small></small>{% endif %}</td>
{% endfor %}
</tr>
{% endmacro %}

{% macro change(system, key, score) %}
{% set gain = system.gain(key) %}
{% if gain is none %}
<td class="number">{{ DASH }}</td>
{% else %}
{% set shown = "%+.3f"|format(gain)|replace("-", "−") if score.bertscore else gain|points %}
<td class="number {{ "gain" if gain > 0 else "loss" if gain < 0 else "" }}">
{%- if system.clearly_differs(key) %}<strong>{{ shown }}</strong>{% else %}{{ shown }}{% endif %}
 <span aria-hidden="true">{{ "▲" if gain > 0 else "▼" if gain < 0 else "=" }}</span></td>
{% endif %}
{% endmacro %}

{% macro mean_row(row, ranked) %}
<tr class="mean"><th scope="row">{{ row.title }} <small>{{ row.note }}</small></th>
<td class="picture">{{ row.plot|picture("intervals") }}</td><td class="number"></td>
{% for mean in row.means %}
<td class="number start"><b>{{ mean.value|percent }}</b><small>{{ mean.bounds|interval }}</small></td>
{% if not mean.is_base %}<td class="number">{{ mean.gain|points }}</td>{% endif %}
<td class="number"></td>
{% endfor %}
{% for _ in ranked %}<td class="number{% if loop.first %} start{% endif %}"></td>{% endfor %}
</tr>
{% endmacro %}

{% macro published_table(content, columns, means, federated) %}
{% set systems = content.systems %}
{% if columns %}
<fieldset class="choice"><legend>Published columns</legend>
{% for column in columns %}
<label><input type="checkbox" id="published-{{ loop.index0 }}" checked> {{ column }}</label>
{% endfor %}
</fieldset>
{% endif %}
{% call scroll("Scores next to the published ones") %}
<table class="scores two-columns">
<caption><span>Accuracy in percent / F1, both by FinLoRA’s rules; BERTScore F1 where there is no accuracy.</span>
</caption>
<thead><tr><th scope="col" rowspan="2">Benchmark</th>
<th scope="colgroup" colspan="{{ systems|length }}" class="start">This report</th>
{% if columns %}
<th scope="colgroup" colspan="{{ columns|length }}" class="start published">Published: another model, other rows</th>
{% endif %}
</tr><tr>
{% for system in systems %}{{ sub_heading(system.heading, loop) }}{% endfor %}
{% for column in columns %}{{ sub_heading(column, loop, "published column-%d" % loop.index0) }}{% endfor %}
</tr></thead>
{% call(item, mean) bodies(content.groups, means, systems|length + columns|length) %}
{% if mean %}
<tr class="mean"><th scope="row">{{ mean.title }} <small>{{ mean.note }}</small></th>
{% for own in mean.means %}
<td class="number{% if loop.first %} start{% endif %}"><b>{{ own.value|percent }}</b></td>
{% endfor %}
{% for value in mean.published %}{% call published_cell(loop) %}{{ value|decimal(1) }}{% endcall %}{% endfor %}
</tr>
{% else %}
<tr>{{ row_heading(item) }}
{% for system in systems %}
<td class="number{% if loop.first %} start{% endif %}">{{ own_cell(system.scores.get(item.key)) }}</td>
{% endfor %}
{% for column in columns %}
{% set accuracy, f1 = item.published.get(column, (none, none)) %}
{% set model = item.published_models.get(column, "") %}
{% call published_cell(loop) %}
{{ accuracy|decimal(1) }}{% if f1 is not none %} / {{ f1|fraction }}{% endif %}
{%- if model %}<small>{{ model }}</small>{% endif %}{% endcall %}
{% endfor %}
</tr>
{% endif %}
{% endcall %}
</table>
{% endcall %}
<ul class="notes">
<li><b>By FinLoRA’s rules</b> the first label found in the output is the answer. Its F1 takes each wrong text for a
label of its own, so it flatters: near 2a / (1 + a) for accuracy a. Rows are <b>ambiguous</b> where two labels start at
the same place, so that FinLoRA’s own verdict is left to chance; here the longest label wins.</li>
<li><b>Means</b> count 100 × BERTScore F1 where there is no accuracy, as FinLoRA does, over the sets that every system
here has; published means are over the same sets.</li>
{% if columns %}
<li><b>Published</b> figures are FinLoRA’s, on its own test files. They come from another model and other rows, and are
here for orientation, not as a comparison.
{% for column in columns if column in content.published.titles %}
{{ column }}: {{ content.published.titles[column] }}{{ "." if loop.last else ";" }}
{% endfor %}</li>
{% endif %}
{% for encoder in content.encoders if "finbert" not in encoder|lower %}
<li><b>BERTScore</b> here: {{ encoder }}. The published ones used ProsusAI/finbert and do not compare.</li>
{% endfor %}
{% if federated %}<li>{{ federated }}</li>{% endif %}
</ul>
{% endmacro %}

{% macro own_cell(score) %}
{% if not score or score.finlora_points is none %}{{ DASH }}
{%- else %}<b>{{ DASH if score.bertscore else score.finlora_points|percent }}</b> /
{{ score.value_of("bertscore_f1" if score.bertscore else "finlora_f1")|fraction }}
{%- set limits = score.bounds_of(score.finlora_key)|interval(score.bertscore) %}
{%- if limits %}<small>{{ limits }}</small>{% endif %}
{%- if score.ambiguous %}<small>{{ score.ambiguous|count }} ambiguous</small>{% endif %}
{%- endif %}
{%- endmacro %}

{% macro published_cell(loop) %}
<td class="number published column-{{ loop.index0 }}{% if loop.first %} start{% endif %}">{{ caller() }}</td>
{% endmacro %}

{% macro paired_table(pairs, groups) %}
{% call scroll("Paired differences by benchmark") %}
<table class="scores narrow"><thead><tr><th scope="col">Benchmark</th>
{% for pair in pairs %}<th scope="col" class="number start">{{ pair.title }}</th>{% endfor %}
</tr></thead>
{% for title, rows in groups %}
<tbody>{{ group_heading(title, 1 + pairs|length) }}
{% for row in rows %}
<tr>{{ row_heading(row) }}{% for pair in pairs %}{{ gain_cell(pair.gains.get(row.key)) }}{% endfor %}</tr>
{% endfor %}
</tbody>
{% endfor %}
<tbody class="overall"><tr class="mean"><th scope="row">Mean</th>
{% for pair in pairs %}{{ gain_cell(pair.overall) }}{% endfor %}
</tr></tbody></table>
{% endcall %}
<ul class="notes">
<li>Differences in percentage points (BERTScore F1 × 100 in italics) on the rows that both systems answered, with the
95 % interval of a paired bootstrap: rows that are hard for one system are hard for the other, so it is narrower than the
two systems’ own intervals suggest.</li>
<li><strong>Bold</strong> where the interval leaves 0 out. <b>p</b> is McNemar’s exact test on rows that are right or
wrong. With many benchmarks, one in twenty looks clear by chance.</li>
</ul>
{% endmacro %}

{% macro gain_cell(gain) %}
{% if gain is none or gain.value is none %}
<td class="number start">{{ DASH }}</td>
{% else %}
{% set shown %}
{% if gain.figure == "bertscore_f1" %}<i>{{ gain.value|points }}</i>{% else %}{{ gain.value|points }}{% endif %}
{% endset %}
<td class="number start {{ gain.direction }}">
{%- if gain.direction %}<strong>{{ shown }}
<span aria-hidden="true">{{ "▲" if gain.value > 0 else "▼" }}</span></strong>
{%- else %}{{ shown }}{% endif %}
{%- if gain.interval %}<small>{{ gain.interval[0]|points }} to {{ gain.interval[1]|points }}</small>{% endif %}
{%- if gain.p is not none %}<small>{{ "p < 0.001" if gain.p < 0.001 else "p = %.3f"|format(gain.p) }}</small>
{%- endif %}</td>
{% endif %}
{% endmacro %}
"""
