"""Run by Optimum's environment: `python optimum_answers.py ARTIFACT TEXT...` prints what its pipeline says to the texts, as JSON."""

import json
import sys

from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer, pipeline

directory, *texts = sys.argv[1:]
model = ORTModelForSequenceClassification.from_pretrained(directory)
tokenizer = AutoTokenizer.from_pretrained(directory)
classify = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
answers = [classify([text])[0] for text in texts] + classify(texts, batch_size=len(texts))
print(json.dumps([{answer["label"]: answer["score"] for answer in each} for each in answers]))
