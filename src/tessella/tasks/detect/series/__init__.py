"""Detection on series: a score for each row, on the original time axis.

scores    distance to normal stretches, and cost of hidden rows under a model
made_up   made-up anomalies, and the default score, chosen on them
prepared  normal rows, the model trained on them, and the thresholds
result    JSON, CSV and page
"""
