"""One run below the scores: curves, banks, rounds, speed, privacy, configuration, versions, and the command line."""

TEMPLATE = """
{% from "macros" import details, figures, pairs, plain, sentences, table %}

{# A fedfinlora.report.run_view.RunView. #}
{% macro run_section(view) %}
{% if view.charts %}<h3>Training, round by round</h3>{{ figures(view.charts) }}{% endif %}
{% if view.furthest %}<p>{{ view.furthest }}</p>{% endif %}
{% if view.banks.rows %}<h3>Banks</h3>{{ table(view.banks) }}{% endif %}
{% if view.contributions %}<h3>What each bank gains and contributes</h3>
{% if view.contributions[0].rows %}{{ table(view.contributions[0]) }}{% endif %}{{ sentences(view.contributions[1]) }}
{% endif %}
{% if view.rounds.rows %}
{% call details("Figures by round", view.rounds.rows|length|plural("round")) %}{{ table(view.rounds) }}{% endcall %}
{% endif %}
{% if view.evaluations.rows %}
{% call details("Evaluation speed and checks", view.evaluations.rows|length|plural("evaluation")) %}
{{ table(view.evaluations) }}{% if view.models %}{{ pairs("Models evaluated", view.models) }}{% endif %}
{% endcall %}
{% endif %}
{% if view.load.rows %}
{% call details("Load of the machine", "means of use, highest memory") %}{{ table(view.load) }}{% endcall %}
{% endif %}
{% if view.skipped %}
{% call details("Benchmarks not scored", view.skipped|length|plural("benchmark")) %}
<ul>{% for title, reason in view.skipped %}<li><b>{{ title }}</b>: {{ reason }}</li>{% endfor %}</ul>
{% endcall %}
{% endif %}
{% if view.card %}{{ privacy(view) }}{% endif %}
{% if view.settings %}{{ settings(view) }}{% endif %}
{% if view.manifest %}
{% call details("Versions, seed and hashes", view.manifest|length|plural("entry", "entries")) %}
{{ pairs("Manifest", view.manifest) }}
{% endcall %}
{% endif %}
{% if view.command %}
<h3>How to reproduce</h3><p>From the project root, with the versions above and the same data:</p>
<pre tabindex="0"><code>{{ view.command }}</code></pre>
{% endif %}
{% endmacro %}

{% macro privacy(view) %}
<h3>Privacy</h3>
{% set card = view.card %}
{% if card.void %}
<p><b>No guarantee.</b> {{ card.void }}</p>
{% elif view.surest is none %}
<p>No bank has trained privately yet: nothing is spent.</p>
{% else %}
<p>For every unit ({{ card.unit }}): <b>ε = {{ card.epsilon|significant }}</b> at δ = {{ "%.0e"|format(card.delta) }},
over all runs in the banks' ledgers. Somebody who knows everything else and does not know beforehand whether the unit took
part (even odds) can be at most {{ "%.5g"|format(view.surest) }} % sure of it afterwards, except with probability δ.</p>
{% endif %}
{% if view.privacy_banks.rows %}{{ table(view.privacy_banks) }}{% endif %}
{{ pairs("Privacy", view.facts) }}
{% if card.leaves %}
{% call details("What else leaves a bank", "") %}
<ul>{% for what, tells in card.leaves.items() %}<li>{{ what }}: {{ tells }}</li>{% endfor %}</ul>
{% endcall %}
{% endif %}
{% for title, items in [("What is withheld", card.withheld), ("Known limits", card.limits)] if items %}
{% call details(title, "") %}{{ sentences(items) }}{% endcall %}
{% endfor %}
{% endmacro %}

{% macro settings(view) %}
{% set summary = "%d values" % view.settings|length %}
{% if view.changed is not none %}
{% set summary = "%s, %d differ from the default" % (summary, view.changed) %}
{% endif %}
{% call details("Configuration", summary) %}
{% call plain("Configuration", ["Key", "Value", "Default"], ["Key", "Value", "Default"]) %}
{% for key, value, default in view.settings %}
<tr{% if default %} class="changed"{% endif %}><th scope="row"><code>{{ key }}</code></th>
<td><code>{{ value }}</code></td><td>{% if default %}changed; default {{ default }}{% endif %}</td></tr>
{% endfor %}
{% endcall %}
{% endcall %}
{% endmacro %}
"""
